"""Classes that a user might name in a recipe, most of them with one thing wrong."""

import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from fedhq_lightning.data import Digits, FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.models import MLP
from fedhq_lightning.types import ClientId


class DigitsMLP(MLP):
    """Nothing is wrong with it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(image_size=8, **settings)


class LazyMLP(DigitsMLP):
    """Nor with this one, whose layers learn their sizes from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(10))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class WarningMLP(DigitsMLP):
    """Says what its user wants to know, again and again."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        warnings.warn("a pixel\n is missing", stacklevel=1)
        return super().training_step(batch, batch_idx)


class ManualOptimization(DigitsMLP):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class TwoOptimizers(DigitsMLP):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]


class NothingToQuantize(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.zeros(10, 64))

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return nn.functional.cross_entropy(batch[0].flatten(1) @ self.projection.T, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class SilentMLP(NothingToQuantize):
    """Logs nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])


class Broken(DigitsMLP):
    """A mistake in the user's own code."""

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        raise ZeroDivisionError("a mistake of the user's own")


class BreaksInRounds(DigitsMLP):
    """A mistake in the user's own code that its first batch does not show."""

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        if batch_index > 0:
            raise ZeroDivisionError("a mistake that the first batch does not show")
        return super().training_step(batch, batch_index)


class Diverges(DigitsMLP):
    """Its weights are no numbers after one step."""

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return super().training_step(batch, batch_index) * float("nan")


class RefusesItsValues(DigitsMLP):
    def __init__(self, depth: int = 1) -> None:
        raise ValueError(f"depth {depth} is too deep")


class _Bare(Dataset[Any]):
    """Gives examples, but tells no labels."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Digits' training set has a length

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


class UnlabelledDigits(Digits):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_Bare(self.train_dataset), 32)


class SizedClients(FederatedDataModule):
    """Digits for clients with given numbers of examples."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.digits = Digits()

    @property
    def client_ids(self) -> Sequence[ClientId]:
        return list(range(len(self.sizes)))

    def train_dataloader(self, client_id: Any) -> DataLoader[Any]:
        return DataLoader(Subset(self.digits.train_dataset, range(self.sizes[client_id])), 16)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.digits.val_dataloader()


class RefusesToStart(RoundCallback):
    """A callback that finds only at the start of the run that it cannot work."""

    def on_fit_start(self, trainer: Any) -> None:
        raise ConfigurationError("RefusesToStart: needs another trainer")
