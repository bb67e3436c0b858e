"""A module with batch normalization that a recipe can name."""

from torch import nn

from fedhq_lightning.models import MLP


class Normed(MLP):
    """An MLP whose hidden layer is normalized."""

    def __init__(self, image_size: int = 8, width: int = 16, lr: float = 0.1) -> None:
        super().__init__(image_size=image_size, hidden_sizes=[width], lr=lr)
        self.layers.insert(2, nn.BatchNorm1d(width))
