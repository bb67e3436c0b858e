"""How models travel between server and clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.payload import Header, PayloadError, decode, encode, is_finite
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.types import ClientId, StateDict

Uplink: TypeAlias = Literal["weights", "delta"]
Downlink: TypeAlias = Literal["fp32", "scheme"]
_FEW_BITS = 2
"""Where sending changes was better by eight points (`benchmarks/uplink.py`)."""


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
    values from the start that are not finite, such as the -inf of an attention mask. A tensor that the module holds
    under several names travels once, under the first that has a grid, so that its names cannot drift apart on
    different grids.

    Args:
        template: The module's state: names, shapes, dtypes, and which names share one tensor.
        grids: Grid of every quantized weight; empty without a scheme.
        uplink: "weights": the local model, rounded to the grids. "delta": its difference to the model received, rounded
            to grids of the same bits. Where there are no grids the model travels as it is, so that one client's round
            is a local fit to the last bit.
        downlink: "fp32", or "scheme": the global model, rounded to the grids.
        frozen: Names of parameters that no client trains.

    Raises:
        ConfigurationError: A complex tensor that is not frozen.
    """

    def __init__(
        self,
        template: Mapping[str, Tensor],
        grids: Mapping[str, LayerScheme],
        uplink: Uplink,
        downlink: Downlink,
        frozen: frozenset[str] = frozenset(),
    ) -> None:
        refused = [name for name, value in template.items() if value.is_complex() and name not in frozen]
        if refused:
            raise ConfigurationError(
                f"{', '.join(refused)}: complex tensors are not averaged; hold real and imaginary part in a float "
                "tensor (torch.view_as_complex gives the complex one), or register a constant with persistent=False"
            )
        self.uplink: Uplink = uplink if grids else "weights"
        self._down_grids = grids if downlink == "scheme" else {}
        self._grids = grids
        self._tied = _tied(template, grids)
        self._template = {name: value for name, value in template.items() if name not in self._tied}
        self._up_template = {
            name: value
            for name, value in self._template.items()
            if value.is_floating_point() and name not in frozen and value.isfinite().all()
        }

    def down(self, state: StateDict, round_number: int) -> tuple[StateDict, int]:
        """What every client of the round receives, and the size of its payload in bytes."""
        header = Header("weights", round_number, "server")
        payload = encode({name: state[name] for name in self._template}, self._down_grids, header)
        return self._with_tied(decode(payload, self._template, self._down_grids, header)), len(payload)

    def up(self, local: Mapping[str, Tensor], received: StateDict, round_number: int, client_id: ClientId) -> bytes:
        """One client's payload."""
        state = {name: local[name].detach() for name in self._up_template}
        if self.uplink == "delta":
            # What has grown is sent as it is: `receive` refuses it by name.
            state = {
                name: value - received[name].to(value.device) if value.shape == received[name].shape else value
                for name, value in state.items()
            }
        return encode(state, self._grids, Header(self.uplink, round_number, client_id))

    def receive(self, payload: bytes, round_number: int, client_id: ClientId) -> StateDict:
        """The tensors of one payload, to be averaged.

        Raises:
            PayloadError: Damaged, of another round, client or model, or not finite.
        """
        header = Header(self.uplink, round_number, client_id)
        state = decode(payload, self._up_template, self._grids, header)
        if not is_finite(state):
            raise PayloadError("the update holds values that are not finite")
        return state

    def combine(self, mean: StateDict, received: StateDict) -> StateDict:
        """Mean weights, under all names, from the mean of what was received."""
        if self.uplink == "delta":
            mean = {name: received[name].float() + value for name, value in mean.items()}
        return self._with_tied(mean)

    def _with_tied(self, state: StateDict) -> StateDict:
        return state | {name: state[other] for name, other in self._tied.items() if other in state}


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
