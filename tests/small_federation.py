"""Tiny clients, modules and trainers: a whole run of them takes a fraction of a second."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import ClientId, StateDict

NUM_FEATURES = 12
NUM_CLASSES = 3


def examples(count: int, seed: int) -> TensorDataset:
    """Gaussian inputs whose class is the largest of three fixed random projections."""
    inputs = torch.randn(count, NUM_FEATURES, generator=torch.Generator().manual_seed(seed))
    projections = torch.randn(NUM_FEATURES, NUM_CLASSES, generator=torch.Generator().manual_seed(999))
    return TensorDataset(inputs, (inputs @ projections).argmax(1))


class SmallData(FederatedDataModule):
    """Clients of given sizes; the last batch of most is a partial one."""

    def __init__(
        self, sizes: Mapping[ClientId, int] | Sequence[int] = (20, 13, 8, 27), batch_size: int = 8, tells: bool = True
    ) -> None:
        super().__init__()
        self.sizes: dict[ClientId, int] = dict(sizes) if isinstance(sizes, Mapping) else dict(enumerate(sizes))
        self.batch_size = batch_size
        self.tells = tells

    @property
    @override
    def client_ids(self) -> Sequence[ClientId]:
        return list(self.sizes)

    def dataset(self, client_id: ClientId) -> TensorDataset:
        return examples(self.sizes[client_id], 1 + list(self.sizes).index(client_id))

    @override
    def train_dataloader(self, client_id: ClientId) -> DataLoader[Any]:
        size = self.sizes[client_id]
        return DataLoader(self.dataset(client_id), self.batch_size, shuffle=size > 0)

    @override
    def val_dataloader(self) -> Any:
        return DataLoader(examples(50, 100), 32)

    def test_dataloader(self) -> Any:
        return DataLoader(examples(30, 200), 32)

    @override
    def label_counts(self, client_id: ClientId) -> Tensor | None:
        return torch.bincount(self.dataset(client_id).tensors[1], minlength=NUM_CLASSES) if self.tells else None


class SmallModule(L.LightningModule):
    """Two linear layers and an ordinary Lightning training loop's worth of logging."""

    def __init__(self, lr: float = 0.1, momentum: float = 0.9) -> None:
        super().__init__()
        self.save_hyperparameters()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.net = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES))
        self.accuracy = MulticlassAccuracy(NUM_CLASSES, average="micro")

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.net(inputs)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        logits = self(inputs)
        self.accuracy(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_accuracy", self.accuracy)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        self.log("test_loss", nn.functional.cross_entropy(self(inputs), labels))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=self.hparams["momentum"])


def trainer(**settings: Any) -> FederatedTrainer:
    """A quiet trainer of two rounds on the CPU."""
    quiet = {"max_rounds": 2, "logger": False, "enable_progress_bar": False, "accelerator": "cpu", "export": []}
    return FederatedTrainer(**(quiet | settings))


def same_bits(left: StateDict, right: StateDict) -> bool:
    """Whether two states are bitwise alike; unlike `torch.equal` it tells -0.0 from 0.0 and knows NaN."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name]
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .equal(right[name].contiguous().reshape(-1).view(torch.uint8))
        for name in left
    )
