"""What a training step costs, and how long it takes on a device: a plain roofline over layers.

A layer of a training step is three matrix products of the same size: its output, the gradient of its input and the
gradient of its weight. So backward is counted as twice forward, as is usual for layers that are matrix products; for
the others (norms, activations, pooling) only bytes count, and backward moves about twice as many. Each product lasts
as long as its arithmetic or its memory traffic, whichever is slower.

What a mode adds, for the layers that it quantizes:

- `ptq` on a device with int8 kernels: products at the int8 peak on int8 operands, and for every product one pass over
  each operand that finds the scales (read fp32) and one that quantizes (read fp32, write int8). On a device without
  int8 kernels PTQ trains in fp32: the same time as `fp`.
- `qat`, kernel `fake`: products in floating point, and in the forward a pass over weight and input that finds the
  scales (read) and one that rounds (read, write); in the backward the straight-through mask (read gradient and mask,
  write gradient).

Convolutions are counted as direct ones (no unfolded copy), caches and launch overheads are left out, and tensors are
taken to be fp32. Source: Williams et al. 2009, "Roofline".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fedhq_lightning.analysis.costs import LayerCost, measure_costs
from fedhq_lightning.devices.profile import DeviceProfile
from fedhq_lightning.types import MODES, Mode

__all__ = ["ClientTime", "LayerCost", "Precision", "measure_costs", "round_seconds", "step_seconds"]

Precision: TypeAlias = Literal["fp32", "bf16"]
"""Format of the floating-point products."""

# Over an fp32 operand, in units of its bytes; a mask and an int8 copy have a quarter of them.
_QUANTIZE_PASSES = 1.0 + 1.0 + 0.25
_FAKE_QUANTIZE_PASSES = 1.0 + 2.0
_STRAIGHT_THROUGH_PASSES = 2.0 + 0.25


@dataclass(frozen=True)
class ClientTime:
    """A client's round in virtual seconds.

    Attributes:
        download_seconds: Fetching the global model.
        compute_seconds: All local steps.
        upload_seconds: Sending the update.
    """

    download_seconds: float
    compute_seconds: float
    upload_seconds: float

    @property
    def total(self) -> float:
        """Sum of the three, in seconds."""
        return self.download_seconds + self.compute_seconds + self.upload_seconds


def step_seconds(
    profile: DeviceProfile,
    mode: Mode,
    costs: Sequence[LayerCost],
    batch_scale: float = 1.0,
    *,
    precision: Precision = "fp32",
) -> float:
    """Virtual seconds of one local step: forward, backward and the update of the parameters.

    Args:
        profile: The device.
        mode: How the client trains; `qat` is kernel `fake`.
        costs: What `measure_costs` returned.
        batch_scale: Examples of this client's batch over those of the measured batch.
        precision: Format of the floating-point products. `bf16` on a device without fast bf16 runs at the fp32 peak.

    Returns:
        Seconds, > 0 if any layer did something.

    Raises:
        ValueError: Unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; allowed are {', '.join(MODES)}")
    float_peak = profile.fp32_flops_per_second
    if precision == "bf16" and profile.bf16_flops_per_second is not None:
        float_peak = profile.bf16_flops_per_second
    int8_peak = profile.int8_flops_per_second
    bandwidth = profile.memory_bytes_per_second
    seconds = 0.0
    for measured in costs:
        cost = measured.scaled(batch_scale)
        if mode == "ptq" and int8_peak is not None and cost.quantizable and not cost.grouped:
            seconds += _int8_training_seconds(cost, int8_peak, bandwidth)
        else:
            moved_bytes = cost.parameter_bytes + cost.activation_bytes
            seconds += 3 * max(cost.forward_flops / float_peak, moved_bytes / bandwidth)
        if mode == "qat" and cost.quantizable:
            rounded_bytes = cost.parameter_bytes + (cost.input_bytes if cost.quantizes_activations else 0.0)
            seconds += rounded_bytes * (_FAKE_QUANTIZE_PASSES + _STRAIGHT_THROUGH_PASSES) / bandwidth
        # Plain SGD: read the gradient and the parameter, write the parameter.
        seconds += 3 * cost.parameter_bytes / bandwidth
    return seconds


def round_seconds(
    profile: DeviceProfile,
    mode: Mode,
    costs: Sequence[LayerCost],
    num_steps: float,
    download_bytes: float,
    upload_bytes: float,
    *,
    batch_scale: float = 1.0,
    precision: Precision = "fp32",
) -> ClientTime:
    """Virtual seconds of one client's round: `download + steps x step + upload`.

    Args:
        profile: The client's device.
        mode: How it trains.
        costs: What `measure_costs` returned.
        num_steps: Local steps; a fraction stands for a last batch that is not full.
        download_bytes: Of the global model as sent.
        upload_bytes: Of the update's payload.
        batch_scale: As in `step_seconds`.
        precision: As in `step_seconds`.

    Returns:
        The three parts, in seconds.
    """
    return ClientTime(
        download_seconds=8 * download_bytes / profile.downlink_bits_per_second,
        compute_seconds=num_steps * step_seconds(profile, mode, costs, batch_scale, precision=precision),
        upload_seconds=8 * upload_bytes / profile.uplink_bits_per_second,
    )


def _int8_training_seconds(cost: LayerCost, int8_peak: float, bandwidth: float) -> float:
    weight, given, output = cost.parameter_bytes, cost.input_bytes, cost.output_bytes
    seconds = 0.0
    # (operands, result): the output, the gradient of the input, the gradient of the weight. Every product quantizes
    # its own operands: the scales run along the dimension that it does not sum over, which differs.
    for operands, result in ((given + weight, output), (output + weight, given), (output + given, weight)):
        seconds += max(cost.forward_flops / int8_peak, (operands / 4 + result) / bandwidth)
        seconds += operands * _QUANTIZE_PASSES / bandwidth
    return seconds
