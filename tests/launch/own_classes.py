"""Models of a user's own, for a recipe of another's."""

from typing import Any

from fedhq_lightning.models import MLP, Classifier

from ..small_federation import SmallModule


class Alien(SmallModule):
    """Shares nothing with the recipe's model but names."""

    def __init__(self, image_size: int, lr: float = 0.001, hidden_sizes: str = "none") -> None:
        super().__init__(lr)
        self.image_size, self.hidden_sizes = image_size, hidden_sizes


class Kin(Classifier):
    """Has `lr` and `momentum` from where the recipe's model has them; `image_size` is another."""

    def __init__(self, image_size: int = 32, lr: float = 0.02, momentum: float = 0.5, **others: Any) -> None:
        super().__init__(lr=lr, momentum=momentum, **others)
        self.image_size = image_size


class Child(MLP):
    """All that the recipe's model has."""

    def __init__(self, hidden_sizes: tuple[int, ...] = (4,), lr: float = 0.03, **others: Any) -> None:
        super().__init__(hidden_sizes=hidden_sizes, lr=lr, **others)
