"""What *harm* rounding does: label divergence, sensitivity to the scheme, directions of updates."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.risk.divergence import (
        Coverage,
        DivergenceMeasure,
        LabelStatistics,
        label_coverage,
        label_divergence,
    )
    from fedhq_lightning.risk.metrics import LabelCoverage, LabelDivergence, NoiseToSignalRatio
    from fedhq_lightning.risk.sensitivity import SensitivityMeasure, quantization_sensitivity
    from fedhq_lightning.risk.update_sketch import Sketcher, direction_divergence

__all__ = [
    "Coverage",
    "DivergenceMeasure",
    "LabelCoverage",
    "LabelDivergence",
    "LabelStatistics",
    "NoiseToSignalRatio",
    "SensitivityMeasure",
    "Sketcher",
    "direction_divergence",
    "label_coverage",
    "label_divergence",
    "quantization_sensitivity",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.risk.divergence": [
            "Coverage",
            "DivergenceMeasure",
            "LabelStatistics",
            "label_coverage",
            "label_divergence",
        ],
        "fedhq_lightning.risk.metrics": ["LabelCoverage", "LabelDivergence", "NoiseToSignalRatio"],
        "fedhq_lightning.risk.sensitivity": ["SensitivityMeasure", "quantization_sensitivity"],
        "fedhq_lightning.risk.update_sketch": ["Sketcher", "direction_divergence"],
    },
)
