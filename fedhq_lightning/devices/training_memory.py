"""How many bytes training holds in a mode, and whether a device has them.

Counted are what is there at the height of a step, when the backward begins: weights, their gradients, the optimizer's
state, what layers have saved for the backward, and the largest tensor in flight. What a kernel adds to the plain layer:

- `int8` under `ptq`: int8 copies of input and weight of a linear layer; a convolution keeps its input itself.
- `int8` under `qat`: int8 copies of weight and of a linear layer's input.
- `fused`: the rounded input and weight, which the products save, beside those that were rounded.
- `fake`: the same, and torchao's intermediate values of the input's rounding, which its eager operators save.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedhq_lightning.devices.lane_kernels import Kernel, LaneKernels
from fedhq_lightning.devices.layer_costs import LayerCost
from fedhq_lightning.types import Mode

if TYPE_CHECKING:
    from fedhq_lightning.devices.device_profile import DeviceProfile

USABLE_SHARE = 0.5
"""Of a device's memory; the other half is the system's, the runtime's and the data's. Our choice, not measured."""
MOST_STATES = 2.0
"""Tensors as large as the weights that an optimizer keeps: Adam's two. SGD with momentum keeps one."""

# Values that torchao's eager rounding keeps until the backward, in units of its input's bytes.
_FAKE_COPIES = 3.0


def training_bytes(
    profile: DeviceProfile,
    mode: Mode,
    costs: Sequence[LayerCost],
    batch_scale: float = 1.0,
    *,
    kernels: LaneKernels | None = None,
    optimizer_states: float = MOST_STATES,
) -> float:
    """Bytes that a local fit holds.

    Args:
        profile: The device, which decides on kernels.
        mode: How the client trains.
        costs: What `measure_costs` returned.
        batch_scale: Examples of this client's largest batch over those of the measured batch.
        kernels: What the recipe says of kernels; None is the static rule everywhere.
        optimizer_states: Tensors as large as the weights that the optimizer keeps.

    Returns:
        Bytes, with tensors in fp32.
    """
    kernels = LaneKernels() if kernels is None else kernels
    saved = in_flight = 0.0
    for measured in costs:
        cost = measured.scaled(batch_scale)
        saved += cost.input_bytes + _added(cost, kernels.choose(cost, mode, profile).at(cost.rows), mode)
        in_flight = max(in_flight, cost.activation_bytes)
    # A frozen weight has neither gradient nor optimizer state.
    weights = sum(cost.parameter_bytes * (2 + optimizer_states if cost.trained else 1) for cost in costs)
    return weights + saved + in_flight


def fits(profile: DeviceProfile, needed_bytes: float) -> bool:
    """Whether a device has so much memory for training: `USABLE_SHARE` of all."""
    return needed_bytes <= USABLE_SHARE * profile.memory_bytes


def _added(cost: LayerCost, kernel: Kernel, mode: Mode) -> float:
    if kernel == "fp":
        return 0.0
    rounded_input = cost.input_bytes if cost.quantizes_activations or mode == "ptq" else 0.0
    if kernel == "int8":
        keeps_weight = cost.kind == "linear" or mode == "qat"
        small = (cost.parameter_bytes if keeps_weight else 0.0) + (rounded_input if cost.kind == "linear" else 0.0)
        return small / 4
    copies = 1.0 if kernel == "fused" else 1.0 + _FAKE_COPIES
    return cost.parameter_bytes + copies * rounded_input
