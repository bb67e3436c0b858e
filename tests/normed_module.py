"""Modules with batch normalization that a recipe can name."""

import math
from typing import Any

from torch import nn

from fedhq_lightning.models import MLP


class Normed(MLP):
    """An MLP whose hidden layer is normalized."""

    def __init__(self, image_size: int = 8, width: int = 16, lr: float = 0.1) -> None:
        super().__init__(image_size=image_size, hidden_sizes=[width], lr=lr)
        self.layers.insert(2, nn.BatchNorm1d(width))


class Flaky(Normed):
    """Fails on some batches, in one of three ways, by what is in them: so on the same ones wherever they are seen."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        kind = int(batch[1].sum()) % 7 if batch_idx else 6
        if kind == 0:
            raise RuntimeError("boom")
        if kind == 1:
            return loss * math.nan
        if kind == 2:
            self.layers[1].weight.data.fill_(1e9)
        return loss
