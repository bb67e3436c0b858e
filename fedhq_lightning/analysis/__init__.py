"""What a round costs on a device, and how far a client's data are from everybody's."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhq_lightning.analysis.costs import LayerCost, measure_costs
    from fedhq_lightning.analysis.data import (
        Coverage,
        DivergenceMeasure,
        LabelStatistics,
        label_coverage,
        label_divergence,
    )
    from fedhq_lightning.analysis.hardware import ClientTime, round_seconds, step_seconds
    from fedhq_lightning.analysis.metrics import LabelCoverage, LabelDivergence, NoiseToSignalRatio
    from fedhq_lightning.analysis.sensitivity import SensitivityMeasure, quantization_sensitivity
    from fedhq_lightning.analysis.updates import Sketcher, direction_divergence

__all__ = [
    "ClientTime",
    "Coverage",
    "DivergenceMeasure",
    "LabelCoverage",
    "LabelDivergence",
    "LabelStatistics",
    "LayerCost",
    "NoiseToSignalRatio",
    "SensitivityMeasure",
    "Sketcher",
    "direction_divergence",
    "label_coverage",
    "label_divergence",
    "measure_costs",
    "quantization_sensitivity",
    "round_seconds",
    "step_seconds",
]

_MODULE_OF_NAME = {
    "ClientTime": "fedhq_lightning.analysis.hardware",
    "Coverage": "fedhq_lightning.analysis.data",
    "DivergenceMeasure": "fedhq_lightning.analysis.data",
    "LabelCoverage": "fedhq_lightning.analysis.metrics",
    "LabelDivergence": "fedhq_lightning.analysis.metrics",
    "LabelStatistics": "fedhq_lightning.analysis.data",
    "LayerCost": "fedhq_lightning.analysis.costs",
    "NoiseToSignalRatio": "fedhq_lightning.analysis.metrics",
    "SensitivityMeasure": "fedhq_lightning.analysis.sensitivity",
    "Sketcher": "fedhq_lightning.analysis.updates",
    "direction_divergence": "fedhq_lightning.analysis.updates",
    "label_coverage": "fedhq_lightning.analysis.data",
    "label_divergence": "fedhq_lightning.analysis.data",
    "measure_costs": "fedhq_lightning.analysis.costs",
    "quantization_sensitivity": "fedhq_lightning.analysis.sensitivity",
    "round_seconds": "fedhq_lightning.analysis.hardware",
    "step_seconds": "fedhq_lightning.analysis.hardware",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562) and keep it."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
