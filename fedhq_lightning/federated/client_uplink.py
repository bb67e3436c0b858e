"""What a client does to its update before it sends it: round it, and keep what rounding took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from fedhq_lightning.federated.wire import Link
from fedhq_lightning.support.seeds import derive_seed
from fedhq_lightning.types import ClientId, StateDict

Rounding: TypeAlias = Literal["nearest", "stochastic"]


@dataclass(frozen=True)
class Sent:
    """What a client sent.

    Attributes:
        payload: Bytes on the wire.
        residual: What rounding took of it, float32 on the CPU; empty without error feedback.
    """

    payload: bytes
    residual: StateDict = field(default_factory=dict)


class ClientUplink:
    """Sends updates.

    Args:
        link: Encodes them.
        seed: The run's, for stochastic rounding.
        rounding: "nearest"; or "stochastic": up or down at random, so that the mean over many updates is exact.
        error_feedback: Add to each update what rounding took of the client's last one.

    Source: error feedback, Seide et al. 2014, and Karimireddy et al. 2019, Algorithm 2; stochastic rounding, Alistarh
    et al. 2017, section 3.1, with the largest magnitude in place of the norm.
    """

    def __init__(self, link: Link, seed: int, rounding: Rounding = "nearest", error_feedback: bool = False) -> None:
        self._link = link
        self._seed = seed
        self._rounding: Rounding = rounding
        self._error_feedback = error_feedback

    def send(
        self, local: StateDict, received: StateDict, round_number: int, client_id: ClientId, residual: StateDict
    ) -> Sent:
        """Encode one client's update.

        Args:
            local: Its model, and what goes beside it.
            received: The model that it received.
            round_number: From 1.
            client_id: Who sends.
            residual: What rounding took of its last update; empty for none.
        """
        generator = None
        if self._rounding == "stochastic":
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "uplink", round_number, client_id))
        if not self._error_feedback:
            return Sent(self._link.up(local, received, round_number, client_id, generator))
        meant = local | {name: local[name].detach().cpu().float() + value for name, value in residual.items()}
        payload = self._link.up(meant, received, round_number, client_id, generator)
        return Sent(payload, self._link.lost(payload, meant, received, round_number, client_id))
