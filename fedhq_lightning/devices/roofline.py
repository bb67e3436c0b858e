"""How long a training step takes on a device: a roofline over layers, for the kernels that each layer has there.

A layer of a training step is three matrix products of the same size: its output, the gradient of its input and the
gradient of its weight; of a frozen layer it is the first two, and it has no update. So backward is counted as twice
forward, as is usual for layers that are matrix products; for the others (norms, activations, pooling) backward moves
about twice as many bytes. Each product lasts as long as its arithmetic or its memory traffic, whichever is slower.
Every operator costs its overhead on top, which is most of the time of small models.

What a kernel adds (bytes are those of fp32 tensors; an int8 copy has a quarter of them):

- `int8` under `ptq`: all three products at the int8 peak. Input and weight are quantized once (a pass that finds the
  scales, one that reads and writes int8), the gradient twice, since its scales run along what each product does not sum
  over; each product's int32 result is read and written rescaled. A convolution's weight gradient is the product of the
  gradient with the patches of the input, which are copied out in int8.
- `int8` under `qat`: as under `ptq`. With `qat_backward: bf16`, and in layers with a static range, the forward alone:
  the backward is in bf16 where the device is fast at it, whatever the run's precision, else in fp32, on operands that
  are read as int8 and written in that format.
- `fused`: products in floating point, and a pass over weight and input that finds the scales and one that rounds.
- `fake`: the same for the weight; the input takes torchao's eager passes, forward and backward.

What a weight's grid costs to find, where its scale is searched, is counted apart. `Calibration` corrects every term.
Source: Williams et al. 2009, "Roofline".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fedhq_lightning.devices.calibration import PLAIN, Calibration
from fedhq_lightning.devices.lane_kernels import Kernel, LaneKernels
from fedhq_lightning.devices.layer_costs import LayerCost, measure_costs
from fedhq_lightning.types import MODES, Mode

if TYPE_CHECKING:
    from fedhq_lightning.devices.device_profile import DeviceProfile

__all__ = [
    "ClientTime",
    "LayerCost",
    "Precision",
    "measure_costs",
    "round_seconds",
    "step_seconds",
    "step_seconds_by_scale",
]

Precision: TypeAlias = Literal["fp32", "bf16"]
"""Format of the floating-point products."""

# In units of the bytes of an fp32 operand.
_QUANTIZE_PASSES = 1.0 + 1.0 + 0.25
_RESCALE_PASSES = 1.0 + 1.0
_ROUND_PASSES = 1.0 + 2.0
_FAKE_PASSES = 12.0  # eager: range, scale, quantize, clamp, dequantize, mask, and the mask again in the backward
_SEARCH_PASSES = 10.0


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
    kernels: LaneKernels | None = None,
    calibration: Calibration = PLAIN,
) -> float:
    """Virtual seconds of one local step: forward, backward and the update of the parameters.

    Args:
        profile: The device.
        mode: How the client trains.
        costs: What `measure_costs` returned.
        batch_scale: Examples of this client's batch over those of the measured batch.
        precision: Format of the floating-point products. `bf16` on a device without fast bf16 runs at the fp32 peak.
        kernels: What the recipe says of kernels; None is the static rule everywhere.
        calibration: Corrects the roofline; as it stands by default.

    Returns:
        Seconds, > 0 if any layer did something.

    Raises:
        ValueError: Unknown mode.
    """
    machine = _Machine.of(profile, mode, precision, calibration, kernels)
    seconds = machine.step_operators(costs)
    for cost in costs:
        kernel = machine.kernels.choose(cost, mode, profile).at(cost.rows * batch_scale)
        seconds += machine.layer_seconds(cost, kernel, float(batch_scale))
    return float(seconds)


def step_seconds_by_scale(
    profile: DeviceProfile,
    mode: Mode,
    costs: Sequence[LayerCost],
    batch_scales: Sequence[float],
    *,
    precision: Precision = "fp32",
    kernels: LaneKernels | None = None,
    calibration: Calibration = PLAIN,
) -> list[float]:
    """`step_seconds` for batches of many sizes at once, much faster than one by one.

    Args:
        profile: As in `step_seconds`.
        mode: As in `step_seconds`.
        costs: As in `step_seconds`.
        batch_scales: One or more.
        precision: As in `step_seconds`.
        kernels: As in `step_seconds`.
        calibration: As in `step_seconds`.

    Returns:
        Seconds, one figure a scale.

    Raises:
        ValueError: Unknown mode.
    """
    import numpy as np

    scales = np.asarray(batch_scales, dtype=np.float64)
    machine = _Machine.of(profile, mode, precision, calibration, kernels)
    seconds = np.full_like(scales, machine.step_operators(costs))
    for cost in costs:
        choice = machine.kernels.choose(cost, mode, profile)
        found = machine.layer_seconds(cost, choice.large, scales)
        if choice.small != choice.large:
            small = machine.layer_seconds(cost, choice.small, scales)
            found = np.where(cost.rows * scales >= choice.least_rows, found, small)
        seconds += found
    answer: list[float] = seconds.tolist()
    return answer


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
    kernels: LaneKernels | None = None,
    calibration: Calibration = PLAIN,
) -> ClientTime:
    """Virtual seconds of one client's round: `download + steps x step + upload`.

    Args:
        profile: The client's device.
        mode: How it trains.
        costs: What `measure_costs` returned.
        num_steps: Local steps.
        download_bytes: Of the global model as sent.
        upload_bytes: Of the update's payload.
        batch_scale: As in `step_seconds`.
        precision: As in `step_seconds`.
        kernels: As in `step_seconds`.
        calibration: As in `step_seconds`.

    Returns:
        The three parts, in seconds.
    """
    settings: dict[str, Any] = {"precision": precision, "kernels": kernels, "calibration": calibration}
    return ClientTime(
        download_seconds=8 * download_bytes / profile.downlink_bits_per_second,
        compute_seconds=num_steps * step_seconds(profile, mode, costs, batch_scale, **settings),
        upload_seconds=8 * upload_bytes / profile.uplink_bits_per_second,
    )


@dataclass(frozen=True)
class _Machine:
    """One device in one mode. `scale` is a number or an array; so are the answers."""

    profile: DeviceProfile
    mode: Mode
    precision: Precision
    calibration: Calibration
    kernels: LaneKernels

    @classmethod
    def of(
        cls,
        profile: DeviceProfile,
        mode: Mode,
        precision: Precision,
        calibration: Calibration,
        kernels: LaneKernels | None,
    ) -> _Machine:
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; allowed are {', '.join(MODES)}")
        return cls(profile, mode, precision, calibration, LaneKernels() if kernels is None else kernels)

    def step_operators(self, costs: Sequence[LayerCost]) -> float:
        """Seconds of a step beside its layers."""
        return self.calibration.step_operators * self.profile.operator_seconds if costs else 0.0

    def layer_seconds(self, cost: LayerCost, kernel: Kernel, scale: Any) -> Any:
        """One layer's share of a step."""
        factors, overhead = self.calibration, self.profile.operator_seconds
        operators = cost.operators * factors.float_operators
        if kernel == "int8":
            is_whole = self.mode == "ptq" or cost.name not in self.kernels.backward_of_values
            by_kernel = self._whole_int8(cost, scale) if is_whole else self._forward_int8(cost, scale)
            if self.mode == "qat":
                by_kernel = by_kernel + self._searched(cost)
            operators += cost.calls * (factors.ptq_int8_operators if is_whole else factors.qat_int8_operators)
        else:
            by_kernel = _products(cost) * self._floating_product(cost, scale)
            if kernel != "fp":
                by_kernel = by_kernel + self._fake(cost, kernel, scale)
                operators += cost.calls * (factors.fused_operators if kernel == "fused" else factors.fake_operators)
        # Plain SGD: read the gradient and the parameter, write the parameter.
        updated_bytes = cost.parameter_bytes if cost.trained else 0.0
        update = self._moved(3 * updated_bytes, factors.update_traffic)
        if updated_bytes:
            operators += factors.update_operators
        return by_kernel + update + operators * overhead

    def _floating_product(
        self, cost: LayerCost, scale: Any, peak: float | None = None, slow: float | None = None
    ) -> Any:
        factors = self.calibration
        if slow is None:
            slow = factors.convolution_float if cost.kind == "convolution" else factors.linear_float
        moved = cost.parameter_bytes + cost.activation_bytes * scale
        traffic = factors.other_traffic if cost.kind == "other" else factors.product_traffic
        return _longer(cost.forward_flops * scale * slow / (peak or self._float_peak()), self._moved(moved, traffic))

    def _int8_product(self, cost: LayerCost, scale: Any, operands: Any, result: Any) -> Any:
        factors = self.calibration
        peak = self.profile.int8_flops_per_second
        assert peak is not None
        slow = factors.convolution_int8 if cost.kind == "convolution" else factors.linear_int8
        moved = self._moved(operands / 4 + result, factors.product_traffic)
        return _longer(cost.forward_flops * scale * slow / peak, moved)

    def _whole_int8(self, cost: LayerCost, scale: Any) -> Any:
        weight, given, output = cost.parameter_bytes, cost.input_bytes * scale, cost.output_bytes * scale
        gradient = weight if cost.trained else 0.0
        forms = _products(cost) - 1  # of the output's gradient, one a product of the backward
        passes = _QUANTIZE_PASSES * (given + weight + forms * output) + _RESCALE_PASSES * (output + given + gradient)
        if cost.kind == "convolution":
            # Patches in int8, a byte each, written and read.
            passes = passes + 2 * cost.calls * cost.rows * scale * prod(cost.weight_shape[1:])
        seconds = self._moved(passes, self.calibration.int8_traffic)
        products = ((given + weight, output), (output + weight, given), (output + given, weight))
        for operands, result in products[: _products(cost)]:
            seconds = seconds + self._int8_product(cost, scale, operands, result)
        return seconds

    def _forward_int8(self, cost: LayerCost, scale: Any) -> Any:
        factors = self.calibration
        weight, given, output = cost.parameter_bytes, cost.input_bytes * scale, cost.output_bytes * scale
        bf16 = self.profile.bf16_flops_per_second
        written = 1.0 if bf16 is None else 0.5
        # int8 is read again, as values written; the gradient is read and written in their format.
        passes = (_QUANTIZE_PASSES + 0.25 + written) * (given + weight) + (_RESCALE_PASSES + 1.0 + written) * output
        # In fp32 these products are like any others.
        low = factors.convolution_backward if cost.kind == "convolution" else factors.linear_backward
        slow = None if bf16 is None else low
        backward = self._floating_product(cost, scale, bf16 or self.profile.fp32_flops_per_second, slow)
        seconds = self._int8_product(cost, scale, given + weight, output) + (_products(cost) - 1) * backward
        return seconds + self._moved(passes, factors.qat_int8_traffic)

    def _fake(self, cost: LayerCost, kernel: Kernel, scale: Any) -> Any:
        factors = self.calibration
        seconds = self._moved(cost.parameter_bytes * _ROUND_PASSES, factors.weight_traffic) + self._searched(cost)
        if not cost.quantizes_activations:
            return seconds
        given = cost.input_bytes * scale
        if kernel == "fused":
            return seconds + self._moved(given * _ROUND_PASSES, factors.fused_traffic)
        return seconds + self._moved(given * _FAKE_PASSES, factors.fake_traffic)

    def _searched(self, cost: LayerCost) -> float:
        if cost.name not in self.kernels.searched:
            return 0.0
        seconds: float = self._moved(cost.parameter_bytes * _SEARCH_PASSES, self.calibration.search_traffic)
        return seconds

    def _moved(self, moved_bytes: Any, factor: float) -> Any:
        return moved_bytes * factor / self.profile.memory_bytes_per_second

    def _float_peak(self) -> float:
        bf16 = self.profile.bf16_flops_per_second
        return bf16 if self.precision == "bf16" and bf16 is not None else self.profile.fp32_flops_per_second


def _products(cost: LayerCost) -> int:
    """Matrix products of a step: output, gradient of the input, and, unless it is frozen, of the weight."""
    return 3 if cost.trained or cost.kind == "other" else 2


def _longer(first: Any, second: Any) -> Any:
    if isinstance(first, float) and isinstance(second, float):
        return max(first, second)  # much faster for one size
    import numpy as np

    return np.maximum(first, second)
