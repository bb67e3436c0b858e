"""ResNet-20, with group or batch normalization."""

import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models.classifier import Classifier
from fedhq_lightning.models.norms import Norm, norm_layer, norm_relu

BLOCKS_PER_STAGE = 3


class ResNet20(Classifier):
    """The ResNet-20 of the CIFAR experiments.

    With GroupNorm in the place of BatchNorm by default: unlike clients normalize unlike batches, where group statistics
    belong to one example (Hsieh et al. 2020, arXiv 1910.00189). Shortcuts that change shape are 1x1 convolutions.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes, >= 2.
        width: Channels of the first stage; the next two have twice and four times as many.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        norm: "group": GroupNorm. "batch": BatchNorm, as in the paper.

    Raises:
        ConfigurationError: `width` is below 1, or there is no such norm.

    Source: He et al. 2016, arXiv 1512.03385, section 4.2. Images of any size from 4 pixels.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        width: int = 16,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        norm: Norm = "group",
    ) -> None:
        super().__init__(num_classes, lr, momentum, weight_decay)
        if width < 1:
            raise ConfigurationError(f"ResNet20 width {width}: must be 1 or more")
        self.stem = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
        self.stem_norm = norm_layer(norm, width)
        blocks: list[nn.Module] = []
        channels = width
        for stage_channels in (width, 2 * width, 4 * width):
            for block in range(BLOCKS_PER_STAGE):
                stride = 2 if block == 0 and stage_channels != width else 1
                blocks.append(ResidualBlock(channels, stage_channels, stride, norm))
                channels = stage_channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        # The layout in which convolutions are fastest, those in int8 above all.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, num_classes), of (batch, in_channels, height, width) images."""
        features = norm_relu(self.stem_norm, self.stem(images))
        features = self.blocks(features)  # (batch, 4 * width, height / 4, width / 4)
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: Stride of the first convolution and of the shortcut.
        norm: After every convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm = "group") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = norm_layer(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                norm_layer(norm, out_channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """(batch, out_channels, height / stride, width / stride) of (batch, in_channels, height, width)."""
        residual = self.conv2(norm_relu(self.norm1, self.conv1(features)))
        return norm_relu(self.norm2, residual, self.shortcut(features))
