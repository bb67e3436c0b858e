"""Normalization of convolutional models, by name."""

from math import gcd
from typing import Literal, TypeAlias

from torch import nn

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
