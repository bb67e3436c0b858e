"""Normalization of convolutional models, by name."""

from collections.abc import Callable
from math import gcd
from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.nn import functional

from fedhq_lightning.errors import ConfigurationError

Norm: TypeAlias = Literal["group", "batch"]
_LARGEST_GROUP_COUNT = 8


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A normalization layer for images of so many channels.

    Args:
        norm: "group": by the channels of one example, in up to 8 groups. "batch": BatchNorm.
        channels: Of the images.

    Raises:
        ConfigurationError: There is no such normalization.
    """
    if norm == "group":
        return nn.GroupNorm(gcd(_LARGEST_GROUP_COUNT, channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    raise ConfigurationError(f"norm {norm!r}: must be one of group, batch")


def norm_relu(norm: nn.Module, features: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """ReLU of normalized features, in one pass where a lane has prepared the norm.

    Args:
        norm: Any normalization layer.
        features: (batch, channels, height, width).
        shortcut: Added before the ReLU, of the features' shape.
    """
    rectified: Callable[[Tensor, Tensor | None], Tensor] | None = getattr(norm, "rectified", None)
    if rectified is not None:
        return rectified(features, shortcut)
    normalized: Tensor = norm(features)
    return functional.relu(normalized if shortcut is None else normalized + shortcut)
