"""MobileNetV2, small."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models.classifier import Classifier
from fedhq_lightning.models.norms import Norm, norm_layer

STAGES = ((1, 1, 1), (2, 2, 2), (4, 2, 2), (8, 2, 1))
"""Of each stage: channels as a multiple of `width`, blocks, stride of the first block."""


class MobileNetV2(Classifier):
    """Inverted residuals with linear bottlenecks, for images of CIFAR's size: four stages where the paper has seven.

    Depthwise convolutions have few weights each, which rounding to few bits hurts most.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes, >= 2.
        width: Channels of the stem and of the first stage; the others have 2, 4 and 8 times as many.
        expansion: Channels between the pointwise convolutions of a block, as a multiple of those that come in.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        norm: "batch": BatchNorm, as in the paper. "group": GroupNorm.

    Raises:
        ConfigurationError: `width` or `expansion` is below 1, or there is no such norm.

    Source: Sandler et al. 2018, arXiv 1801.04381, section 3 and table 2.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        width: int = 16,
        expansion: int = 2,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        norm: Norm = "batch",
    ) -> None:
        super().__init__(num_classes, lr, momentum, weight_decay)
        for name, value in (("width", width), ("expansion", expansion)):
            if value < 1:
                raise ConfigurationError(f"MobileNetV2 {name} {value}: must be 1 or more")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, kernel_size=3, stride=2, padding=1, bias=False),
            norm_layer(norm, width),
            nn.ReLU6(),
        )
        blocks: list[nn.Module] = []
        channels = width
        for multiple, count, stride in STAGES:
            for block in range(count):
                blocks.append(
                    InvertedResidual(channels, multiple * width, stride if block == 0 else 1, expansion, norm)
                )
                channels = multiple * width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        # The layout in which convolutions are fastest, those in int8 above all.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, num_classes), of (batch, in_channels, height, width) images."""
        features = self.blocks(self.stem(images))  # (batch, 8 * width, height / 8, width / 8)
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """A pointwise convolution that widens, a depthwise one, and a pointwise one that narrows, without a nonlinearity.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: Stride of the depthwise convolution; with 1 and as many channels out as in there is a shortcut.
        expansion: Channels in between, as a multiple of those that come in.
        norm: After every convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, norm: Norm) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, wide, kernel_size=1, bias=False),
            norm_layer(norm, wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, kernel_size=3, stride=stride, padding=1, groups=wide, bias=False),
            norm_layer(norm, wide),
            nn.ReLU6(),
            nn.Conv2d(wide, out_channels, kernel_size=1, bias=False),
            norm_layer(norm, out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(batch, out_channels, height / stride, width / stride) of (batch, in_channels, height, width)."""
        narrowed: Tensor = self.layers(features)
        return features + narrowed if self.has_shortcut else narrowed
