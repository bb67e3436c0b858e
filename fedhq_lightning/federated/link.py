"""How models travel between server and clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from torch import Tensor

from fedhq_lightning.federated.payload import Header, PayloadError, decode, encode, is_finite
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.types import ClientId, StateDict

Uplink: TypeAlias = Literal["weights", "delta"]
Downlink: TypeAlias = Literal["fp32", "scheme"]


class Link:
    """Encodes both ways and checks what comes back.

    Up travel float tensors only: integer buffers stay the server's.

    Args:
        template: A global state: names, shapes, dtypes.
        grids: Grid of every quantized weight; empty without a scheme.
        uplink: "weights": the local model, rounded to the grids. "delta": its difference to the model received, rounded
            to grids of the same bits.
        downlink: "fp32", or "scheme": the global model, rounded to the grids.
    """

    def __init__(
        self, template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme], uplink: Uplink, downlink: Downlink
    ) -> None:
        self.uplink = uplink
        self._down_grids = grids if downlink == "scheme" else {}
        self._grids = grids
        self._template = dict(template)
        self._float_template = {name: value for name, value in template.items() if value.is_floating_point()}

    def down(self, state: StateDict, round_number: int) -> tuple[StateDict, int]:
        """What every client of the round receives, and the size of its payload in bytes."""
        header = Header("weights", round_number, "server")
        payload = encode(state, self._down_grids, header)
        return decode(payload, self._template, self._down_grids, header), len(payload)

    def up(self, local: Mapping[str, Tensor], received: StateDict, round_number: int, client_id: ClientId) -> bytes:
        """One client's payload."""
        state = {name: local[name].detach() for name in self._float_template}
        if self.uplink == "delta":
            state = {name: value - received[name].to(value.device) for name, value in state.items()}
        return encode(state, self._grids, Header(self.uplink, round_number, client_id))

    def receive(self, payload: bytes, round_number: int, client_id: ClientId) -> StateDict:
        """The float tensors of one payload, to be averaged.

        Raises:
            PayloadError: Damaged, of another round, client or model, or not finite.
        """
        header = Header(self.uplink, round_number, client_id)
        state = decode(payload, self._float_template, self._grids, header)
        if not is_finite(state):
            raise PayloadError("the update holds values that are not finite")
        return state

    def combine(self, mean: StateDict, received: StateDict) -> StateDict:
        """Mean weights from the mean of what was received."""
        if self.uplink == "weights":
            return mean
        return {name: received[name].float() + value for name, value in mean.items()}
