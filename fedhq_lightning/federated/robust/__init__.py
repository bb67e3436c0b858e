"""Robust rules, one file each: how updates come together when some clients may be hostile."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.federated.robust.bulyan import Bulyan
    from fedhq_lightning.federated.robust.coordinate_median import CoordinateMedian
    from fedhq_lightning.federated.robust.geometric_median import GeometricMedian
    from fedhq_lightning.federated.robust.krum import Krum, MultiKrum
    from fedhq_lightning.federated.robust.norm_clipping import NormClipping
    from fedhq_lightning.federated.robust.rule import RobustRule
    from fedhq_lightning.federated.robust.trimmed_mean import TrimmedMean

__all__ = [
    "Bulyan",
    "CoordinateMedian",
    "GeometricMedian",
    "Krum",
    "MultiKrum",
    "NormClipping",
    "RobustRule",
    "TrimmedMean",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.federated.robust.bulyan": ["Bulyan"],
        "fedhq_lightning.federated.robust.coordinate_median": ["CoordinateMedian"],
        "fedhq_lightning.federated.robust.geometric_median": ["GeometricMedian"],
        "fedhq_lightning.federated.robust.krum": ["Krum", "MultiKrum"],
        "fedhq_lightning.federated.robust.norm_clipping": ["NormClipping"],
        "fedhq_lightning.federated.robust.rule": ["RobustRule"],
        "fedhq_lightning.federated.robust.trimmed_mean": ["TrimmedMean"],
    },
)
