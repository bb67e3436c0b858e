"""Predicted steps of a recipe's lanes on this host, by the virtual clock's model as shipped and fitted to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from fedhq_lightning.devices.calibration import shipped_calibration
from fedhq_lightning.devices.calibration_fit import Observation, fit
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.devices.layer_costs import LayerCost
from fedhq_lightning.devices.roofline import Precision
from fedhq_lightning.profiling.host_device import HostDevice
from fedhq_lightning.profiling.host_profile import LayerProfile, PredictedStep
from fedhq_lightning.profiling.timing import Timing
from fedhq_lightning.quantize import LaneOptions, LayerScheme
from fedhq_lightning.quantize.lane_options import KERNELS
from fedhq_lightning.types import Mode

REFERENCE_LANE = "fp"
"""The one lane whose whole step is in the fit."""


def predict_steps(
    host: HostDevice,
    template: nn.Module,
    grids: Mapping[str, LayerScheme],
    costs: Sequence[LayerCost],
    layers: Sequence[LayerProfile],
    steps: Mapping[str, Timing],
    lanes: Mapping[str, tuple[Mode, LaneOptions]],
    precision: Precision,
) -> dict[str, PredictedStep]:
    """Predict every lane's step, before and after a fit to this host.

    Args:
        host: This host as a device.
        template: The user's module, in floating point.
        grids: Grid of every quantized layer, by name.
        costs: The module's layers, counted on the batch that was measured.
        layers: What was measured of single layers; in the fit.
        steps: What was measured of whole steps; only that of `fp` is in the fit.
        lanes: Lane to how it computes.
        precision: Format of the floating-point products.

    Returns:
        A prediction for each lane.
    """
    by_name = {cost.name: cost for cost in costs}
    whole = {
        lane: Observation(
            *(host.profile, mode, costs, LaneKernels.of(template, grids, options), steps[lane].seconds),
            precision=precision,
            linear_slowdown=host.linear_slowdown,
        )
        for lane, (mode, options) in lanes.items()
    }
    parts = [
        Observation(
            *(host.profile, mode, [by_name[layer.name]], kernels, timing.seconds),
            is_step=False,
            precision=precision,
            linear_slowdown=host.linear_slowdown,
        )
        for (mode, kernel), kernels in _by_kernel(template, grids, lanes).items()
        for layer in layers
        if layer.name in by_name
        for timing in [layer.timings.get((mode, kernel))]
        if timing is not None
    ]
    shipped = shipped_calibration()
    fitted = fit([*parts, *([whole[REFERENCE_LANE]] * max(1, len(parts) // 4))], shipped)
    return {lane: PredictedStep(each.predicted(shipped), each.predicted(fitted)) for lane, each in whole.items()}


def _by_kernel(
    template: nn.Module, grids: Mapping[str, LayerScheme], lanes: Mapping[str, tuple[Mode, LaneOptions]]
) -> dict[tuple[Mode, str], LaneKernels]:
    """All layers with one kernel, which else computes as the lane of its mode does."""
    modes: tuple[Mode, ...] = ("ptq", "qat")
    return {
        (mode, kernel): LaneKernels.of(template, grids, replace(lanes[mode][1], layer_kernels={mode: {"*": kernel}}))
        for mode in modes
        for kernel in KERNELS[mode]
    }
