"""LeNet-5."""

from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models.classifier import Classifier

SMALLEST_IMAGE = 12


class LeNet5(Classifier):
    """LeNet-5 with ReLU and max pooling; 61,706 parameters for (1, 28, 28) images and 10 classes.

    Args:
        in_channels: Channels of the images.
        image_size: Height and width of the square images in pixels, >= 12.
        num_classes: Classes, >= 2.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.

    Raises:
        ConfigurationError: The images are smaller than 12 pixels.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II-B.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(num_classes, lr, momentum, weight_decay)
        if image_size < SMALLEST_IMAGE:
            raise ConfigurationError(
                f"LeNet5 image_size {image_size}: must be {SMALLEST_IMAGE} or more; use MLP for smaller images"
            )
        feature_size = (image_size // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5, padding=2),  # (batch, 6, size, size)
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),  # (batch, 16, size / 2 - 4, size / 2 - 4)
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * feature_size**2, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, num_classes), of (batch, in_channels, image_size, image_size) images."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
