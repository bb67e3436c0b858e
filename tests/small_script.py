"""What a user's Lightning script has: a small module, seeded data, and a quiet Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning.callbacks import QuantizedTraining

from .beside_lightning import lightning_trainer, without_advice

NUM_FEATURES, NUM_CLASSES = 12, 4


class ScriptModule(L.LightningModule):
    """Three linear layers and dropout; remembers what its first layer was in each step."""

    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.net = self.layers()
        self.seen: list[tuple[str, str]] = []

    def layers(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(("train", type(self.net[0]).__name__))
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(("validate", type(self.net[0]).__name__))
        outputs = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(outputs, batch[1]), prog_bar=True)
        self.log("val_accuracy", (outputs.argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


def dataset(num_examples: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_examples, NUM_FEATURES, generator=generator)
    return TensorDataset(x, (x[:, :NUM_CLASSES] * 3).argmax(1))


def train_loader(num_examples: int = 96) -> DataLoader[Any]:
    return DataLoader(dataset(num_examples, seed=1), batch_size=16)


def val_loader(num_examples: int = 40) -> DataLoader[Any]:
    return DataLoader(dataset(num_examples, seed=2), batch_size=16)


def fit(
    module: L.LightningModule, callbacks: Sequence[L.Callback], ckpt_path: Any = None, **settings: Any
) -> L.Trainer:
    """Train as a script would; validation on `val_loader` unless `val_dataloaders` is given."""
    loaders = settings.pop("val_dataloaders", None) or val_loader()
    settings = {"max_epochs": 2, "num_sanity_val_steps": 2, "default_root_dir": Path.cwd()} | settings
    trainer = lightning_trainer(callbacks=list(callbacks), **settings)
    torch.manual_seed(3)
    with without_advice():
        trainer.fit(module, train_loader(), loaders, ckpt_path=ckpt_path)
    return trainer


def quantized(mode: str = "qat", scheme: Any = "w4a8", **settings: Any) -> QuantizedTraining:
    """The callback; it writes nothing unless asked, since that takes longer than all the rest."""
    return QuantizedTraining(mode, scheme, **({"export": False} | settings))  # type: ignore[arg-type]


def floats(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    mine, other = first.state_dict(), second.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


def is_plain(module: nn.Module) -> bool:
    return not any(type(layer).__module__.startswith("fedhq_lightning.quantize") for layer in module.modules())
