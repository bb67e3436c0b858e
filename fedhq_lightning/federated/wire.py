"""How models travel between server and clients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.beside import beside_of, model_of, named_beside
from fedhq_lightning.federated.payload import (
    Header,
    PackedState,
    PayloadError,
    decode,
    decoded,
    encode,
    num_payload_bytes,
    open_payload,
)
from fedhq_lightning.federated.update_checks import is_finite
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.types import ClientId, StateDict

Uplink: TypeAlias = Literal["weights", "delta"]
Downlink: TypeAlias = Literal["fp32", "scheme"]
_FEW_BITS = 2
"""Where sending changes was better by eight points (`benchmarks/uplink.py`)."""
_FIXED = Header("fixed", 0, "server")


def warn_of_lost_changes(uplink: Uplink, grids: Mapping[str, LayerScheme]) -> None:
    """Say that local changes are lost where models are sent on a grid of 2 bits."""
    if uplink == "weights" and any(grid.weight_bits <= _FEW_BITS for grid in grids.values()):
        rank_zero_warn(
            f"uplink 'weights' rounds every client's model to {_FEW_BITS} bits, and changes of less than half a step "
            "are lost on the way; uplink 'delta' sends the change itself, in as many bytes"
        )


class Link:
    """Encodes both ways and checks what comes back.

    Up travel float tensors only: integer buffers stay the server's, and so do tensors that are frozen or that hold
    values from the start that are not finite, such as the -inf of an attention mask. What stays the server's is fixed:
    no round changes it, so it goes down once to a client, in a payload of its own, and every round only the rest. A
    tensor that the module holds under several names travels once, under the first that has a grid, so that its names
    cannot drift apart on different grids.

    Args:
        template: The module's state: names, shapes, dtypes, and which names share one tensor.
        grids: Grid of every quantized weight; empty without a scheme.
        uplink: "weights": the local model, rounded to the grids. "delta": its difference to the model received, rounded
            to grids of the same bits. Where there are no grids the model travels as it is, so that one client's round
            is a local fit to the last bit.
        downlink: "fp32", or "scheme": the global model, rounded to the grids.
        frozen: Names of parameters that no client changes.
        retaken: Names of batch statistics that are taken anew: they go down, not up.
        up_grids: Grids on the way up, where they are others.
        always: Whether `uplink` holds without grids too.

    Raises:
        ConfigurationError: A complex tensor that is not frozen.

    Attributes:
        fixed_names: What no round changes, under all names.
    """

    def __init__(
        self,
        template: Mapping[str, Tensor],
        grids: Mapping[str, LayerScheme],
        uplink: Uplink,
        downlink: Downlink,
        frozen: frozenset[str] = frozenset(),
        retaken: frozenset[str] = frozenset(),
        up_grids: Mapping[str, LayerScheme] | None = None,
        always: bool = False,
    ) -> None:
        refused = [name for name, value in template.items() if value.is_complex() and name not in frozen]
        if refused:
            raise ConfigurationError(
                f"{', '.join(refused)}: complex tensors are not averaged; hold real and imaginary part in a float "
                "tensor (torch.view_as_complex gives the complex one), or register a constant with persistent=False"
            )
        self._grids = grids if up_grids is None else up_grids
        self.uplink: Uplink = uplink if self._grids or always else "weights"
        self._down_grids = grids if downlink == "scheme" else {}
        self._tied = _tied(template, grids)
        # A tensor is frozen when all of its names are.
        trained = {self._tied.get(name, name) for name in template if name not in frozen}
        self._moving: StateDict = {}
        self._fixed: StateDict = {}
        for name, value in template.items():
            if name not in self._tied:
                moves = value.is_floating_point() and name in trained and value.isfinite().all()
                (self._moving if moves else self._fixed)[name] = value
        self._sent = {name: value for name, value in self._moving.items() if name not in retaken}
        self.fixed_names = frozenset(name for name in template if self._tied.get(name, name) in self._fixed)
        self._last_fixed: tuple[StateDict, StateDict] = {}, {}
        self._beside_down: StateDict = {}

    def carry(self, beside_down: StateDict, beside_up: StateDict) -> None:
        """Take tensors beside the model in every payload from now on: by their own names, with their shapes.

        Args:
            beside_down: What `down` finds beside the model in the state that it is given, see `beside.py`.
            beside_up: What `up` does.
        """
        self._beside_down = named_beside(beside_down)
        self._sent = model_of(self._sent) | named_beside(beside_up)

    def no_change_beside(self) -> StateDict:
        """Zeros for every tensor that comes up beside the model, by its name in the payload."""
        return named_beside({name: torch.zeros_like(each) for name, each in beside_of(self._sent).items()})

    @property
    def sent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor that a client sends, by its name in the payload, in its order there."""
        return {name: tuple(value.shape) for name, value in self._sent.items()}

    def trained(self, parameter_names: frozenset[str]) -> list[str]:
        """Those of the parameters that travel, each once where the module holds it under several names."""
        return [name for name in self._moving if name in parameter_names]

    @cached_property
    def fixed_bytes(self) -> int:
        """Size of the payload that goes down with a client's first round alone; 0 where every round changes all."""
        return len(encode(self._fixed, self._down_grids, _FIXED)) if self._fixed else 0

    def down(self, state: StateDict, round_number: int) -> tuple[StateDict, int]:
        """What every client of the round has then, and the size in bytes of the payload that every one receives.

        A client that takes part for the first time receives `fixed_bytes` more.
        """
        payload = self.encode_down(state, round_number)
        return self.arrived(payload, state, round_number), len(payload)

    def encode_down(self, state: StateDict, round_number: int, is_exact: bool = False) -> bytes:
        """The payload that every client of the round receives.

        Args:
            state: The global model, and what goes beside it.
            round_number: Of the round.
            is_exact: The model alone, in float32 whatever `downlink` says.
        """
        template, grids, header = self._down(round_number, is_exact)
        return encode({name: state[name] for name in template}, grids, header)

    def arrived(self, payload: bytes, like: StateDict, round_number: int, is_exact: bool = False) -> StateDict:
        """What a client has once the round's payload is there.

        Args:
            payload: Of `encode_down`.
            like: A state with all names, and with what no round changes.
            round_number: Of the round.
            is_exact: As given to `encode_down`.

        Raises:
            PayloadError: Damaged, or of another round or model.
        """
        sent = _copied(decode(payload, *self._down(round_number, is_exact)))
        fixed = {name: like[name] for name in self._fixed} if is_exact else self._received_fixed(like)
        received = fixed | sent
        return self._with_tied({name: received[name] for name in like if name in received})

    def fixed_digest(self, state: StateDict) -> str:
        """What tells whether two ends hold the same of what no round changes."""
        fixed = encode({name: state[name] for name in self._fixed}, self._down_grids, _FIXED)
        return blake2b(fixed, digest_size=16).hexdigest()

    def up(
        self,
        local: Mapping[str, Tensor],
        received: StateDict,
        round_number: int,
        client_id: ClientId,
        generator: torch.Generator | None = None,
    ) -> bytes:
        """One client's payload; with a generator it is rounded up or down at random."""
        # What has grown is sent as it is: `receive` refuses it by name.
        state, bases = {name: local[name] for name in self._sent}, received if self.uplink == "delta" else None
        return encode(state, self._grids, Header(self.uplink, round_number, client_id), bases, generator)

    def lost(
        self, payload: bytes, local: Mapping[str, Tensor], received: StateDict, round_number: int, client_id: ClientId
    ) -> StateDict:
        """What rounding took of what `up` was given, in float32: of each tensor with a grid."""
        arrived = decoded(self.open(payload, round_number, client_id))
        residual: StateDict = {}
        for name in self._sent.keys() & self._grids.keys():
            meant = local[name].detach().cpu().float()
            residual[name] = (meant - received[name] if self.uplink == "delta" else meant) - arrived[name]
        return residual

    def num_payload_bytes(self, round_number: int, client_id: ClientId) -> int:
        """Length of a client's payload: whoever takes payloads from afar need not read more."""
        return num_payload_bytes(self._sent, self._grids, Header(self.uplink, round_number, client_id))

    def open(self, payload: bytes, round_number: int, client_id: ClientId) -> PackedState:
        """The tensors of one payload, as they lie in it, to be averaged; they must not be changed in place.

        Whether their values can be, `update_checks` tells.

        Raises:
            PayloadError: Damaged, or of another round, client or model.
        """
        return open_payload(payload, self._sent, self._grids, Header(self.uplink, round_number, client_id))

    def receive(self, payload: bytes, round_number: int, client_id: ClientId) -> StateDict:
        """What `open` gives, as tensors that are finite; they may lie in the payload too.

        Raises:
            PayloadError: As `open`, or not finite.
        """
        state = self.open(payload, round_number, client_id)
        if not is_finite(state):
            raise PayloadError("the update holds values that are not finite")
        return decoded(state)

    def combine(self, mean: StateDict, received: StateDict) -> StateDict:
        """Mean weights, under all names, from the mean of what was received."""
        if self.uplink == "delta":
            mean = {name: received[name].float() + value for name, value in mean.items()}
        return self._with_tied(mean)

    def _down(self, round_number: int, is_exact: bool) -> tuple[StateDict, Mapping[str, LayerScheme], Header]:
        if is_exact:
            return self._moving, {}, Header("exact", round_number, "server")
        return self._moving | self._beside_down, self._down_grids, Header("weights", round_number, "server")

    def _received_fixed(self, state: StateDict) -> StateDict:
        """What clients have of the fixed part, decoded once for as long as the server holds the same tensors."""
        sent = {name: state[name] for name in self._fixed}
        before, received = self._last_fixed
        if any(before.get(name) is not value for name, value in sent.items()):
            payload = encode(sent, self._down_grids, _FIXED)
            received = _copied(decode(payload, self._fixed, self._down_grids, _FIXED))
            self._last_fixed = sent, received
        return received

    def _with_tied(self, state: StateDict) -> StateDict:
        return state | {name: state[other] for name, other in self._tied.items() if other in state}


def _copied(state: StateDict) -> StateDict:
    """Tensors of a model, which must not share memory."""
    return {name: value.clone() for name, value in state.items()}


def _tied(template: Mapping[str, Tensor], grids: Mapping[str, LayerScheme]) -> dict[str, str]:
    """Names that do not travel, because they are another name's tensor -> that name."""
    by_tensor: dict[Any, list[str]] = {}
    for name, value in template.items():
        if value.numel():
            by_tensor.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype), []).append(name)
    tied: dict[str, str] = {}
    for names in by_tensor.values():
        travels = next((name for name in names if name in grids), names[0])
        tied |= {name: travels for name in names if name != travels}
    return tied
