"""Fit the factors of `Calibration` to measured times, near to where they start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import log
from typing import Any

from fedhq_lightning.devices.calibration import Calibration
from fedhq_lightning.devices.device_profile import DeviceProfile
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.devices.layer_costs import LayerCost
from fedhq_lightning.devices.roofline import Precision, step_seconds
from fedhq_lightning.types import Mode

_STEPS, _STEP, _LEAST_GAIN = 60, 1e-4, 1e-6
_FARTHEST = log(1e3)
_PRODUCTS = (
    *("linear_float", "convolution_float", "linear_int8", "convolution_int8"),
    *("linear_backward", "convolution_backward"),
)
_LEAST_PRODUCT = 0.8  # no product is much faster than the peak; without a bound, traffic takes over in the fit
_ROBUST = 0.3  # of the natural logarithm: an observation that is off by more than a third pulls less


@dataclass(frozen=True)
class Observation:
    """Something measured, and what the model is told of it.

    Attributes:
        profile: Where it ran.
        mode: How.
        costs: What ran.
        kernels: By which kernels.
        seconds: What it took, wall; > 0.
        is_step: A whole training step; else the layers alone, forward and backward, without update.
        precision: Format of the floating-point products.
        linear_slowdown: See `host_device.HostDevice`.
    """

    profile: DeviceProfile
    mode: Mode
    costs: Sequence[LayerCost]
    kernels: LaneKernels
    seconds: float
    is_step: bool = True
    precision: Precision = "fp32"
    linear_slowdown: float = 1.0

    def predicted(self, calibration: Calibration) -> float:
        """Seconds that the roofline predicts under a calibration."""
        if self.precision == "fp32":
            calibration = replace(calibration, linear_float=calibration.linear_float * self.linear_slowdown)
        if not self.is_step:
            calibration = replace(calibration, update_traffic=0.0, update_operators=0.0, step_operators=0.0)
        return step_seconds(
            self.profile,
            self.mode,
            self.costs,
            precision=self.precision,
            kernels=self.kernels,
            calibration=calibration,
        )


def fit(observations: Sequence[Observation], start: Calibration, weight: float = 0.05) -> Calibration:
    """Factors at which predictions are nearest to what was measured, by ratio.

    Args:
        observations: One or more.
        start: Factors to start from and to stay near; one that is 0 stays 0.
        weight: Of staying near: how much an observation must be off for a factor to move e-fold, both as logarithms.

    Returns:
        Factors between a thousandth and a thousandfold of their start, those of products 0.8 or more. Those that no
        observation tells of stay.
    """
    import numpy as np

    first = {name: value for name, value in asdict(start).items() if value > 0}

    def at(logs: Any) -> Calibration:
        return replace(start, **{name: first[name] * float(np.exp(x)) for name, x in zip(first, logs, strict=True)})

    def off(logs: Any) -> Any:
        calibration = at(logs)
        errors = [log(each.predicted(calibration) / each.seconds) for each in observations]
        # Robust in the errors alone: a factor that runs away is not forgiven.
        return np.array([*(_ROBUST * np.arcsinh(np.array(errors) / _ROBUST)), *(weight * logs)])

    lowest = np.array(
        [max(-_FARTHEST, log(_LEAST_PRODUCT / first[name])) if name in _PRODUCTS else -_FARTHEST for name in first]
    )

    # Levenberg and Marquardt: smaller steps until one helps, then larger ones.
    logs, damping = np.maximum(np.zeros(len(first)), lowest), 1e-2
    residuals = off(logs)
    for _ in range(_STEPS):
        slopes = np.stack([(off(logs + each) - residuals) / _STEP for each in _STEP * np.eye(len(first))], axis=1)
        # What presses against its bound does not move, or it would hold the others back.
        slopes[:, (logs <= lowest) & (slopes.T @ residuals > 0)] = 0
        normal = slopes.T @ slopes + damping * np.eye(len(first))
        tried = np.clip(logs - np.linalg.solve(normal, slopes.T @ residuals), lowest, _FARTHEST)
        tried_residuals = off(tried)
        gain = residuals @ residuals - tried_residuals @ tried_residuals
        if gain > 0:
            logs, residuals, damping = tried, tried_residuals, damping / 3
            if gain < _LEAST_GAIN:
                break
        else:
            damping *= 4
    return at(logs)
