"""Reference LightningModules: small image classifiers. Each is imported when its name is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhq_lightning.models.classifier import ImageClassifier
    from fedhq_lightning.models.lenet import LeNet5
    from fedhq_lightning.models.mlp import MLP
    from fedhq_lightning.models.resnet import ResNet20
    from fedhq_lightning.models.vit import ViT

__all__ = ["MLP", "ImageClassifier", "LeNet5", "ResNet20", "ViT"]

_MODULES = {"ImageClassifier": "classifier", "LeNet5": "lenet", "MLP": "mlp", "ResNet20": "resnet", "ViT": "vit"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
