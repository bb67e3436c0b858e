"""A multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fedhq_lightning.models.classifier import Classifier


class MLP(Classifier):
    """Linear layers with ReLU between them, over the flattened image.

    Args:
        in_channels: Channels of the images.
        image_size: Height and width of the square images in pixels.
        num_classes: Classes, >= 2.
        hidden_sizes: Width of each hidden layer.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        hidden_sizes: Sequence[int] = (128, 64),
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(num_classes, lr, momentum, weight_decay)
        sizes = [in_channels * image_size**2, *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, num_classes), of (batch, in_channels, image_size, image_size) images."""
        logits: Tensor = self.layers(images)
        return logits
