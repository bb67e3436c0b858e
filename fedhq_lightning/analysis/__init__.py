"""What a round costs on a device, and how far a client's data are from everybody's."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhq_lightning.analysis.costs import LayerCost, measure_costs
    from fedhq_lightning.analysis.data import DivergenceMeasure, label_divergence
    from fedhq_lightning.analysis.hardware import ClientTime, round_seconds, step_seconds

__all__ = [
    "ClientTime",
    "DivergenceMeasure",
    "LayerCost",
    "label_divergence",
    "measure_costs",
    "round_seconds",
    "step_seconds",
]

_MODULE_OF_NAME = {
    "ClientTime": "fedhq_lightning.analysis.hardware",
    "DivergenceMeasure": "fedhq_lightning.analysis.data",
    "LayerCost": "fedhq_lightning.analysis.costs",
    "label_divergence": "fedhq_lightning.analysis.data",
    "measure_costs": "fedhq_lightning.analysis.costs",
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
