"""Reference LightningModules: small classifiers of images, of tables and of characters."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.models.char_transformer import CharTransformer
    from fedhq_lightning.models.classifier import Classifier
    from fedhq_lightning.models.lenet import LeNet5
    from fedhq_lightning.models.lora import add_lora
    from fedhq_lightning.models.mlp import MLP
    from fedhq_lightning.models.mobilenet import MobileNetV2
    from fedhq_lightning.models.resnet import ResNet20
    from fedhq_lightning.models.tabular import TabularInput, TabularMLP
    from fedhq_lightning.models.vit import ViT

__all__ = [
    "MLP",
    "CharTransformer",
    "Classifier",
    "LeNet5",
    "MobileNetV2",
    "ResNet20",
    "TabularInput",
    "TabularMLP",
    "ViT",
    "add_lora",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.models.char_transformer": ["CharTransformer"],
        "fedhq_lightning.models.classifier": ["Classifier"],
        "fedhq_lightning.models.lenet": ["LeNet5"],
        "fedhq_lightning.models.lora": ["add_lora"],
        "fedhq_lightning.models.mlp": ["MLP"],
        "fedhq_lightning.models.mobilenet": ["MobileNetV2"],
        "fedhq_lightning.models.resnet": ["ResNet20"],
        "fedhq_lightning.models.tabular": ["TabularInput", "TabularMLP"],
        "fedhq_lightning.models.vit": ["ViT"],
    },
)
