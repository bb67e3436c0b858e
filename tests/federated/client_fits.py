"""Local fits of small modules, alone and beside Lightning's."""

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.types import FitOptions

from ..beside_lightning import lightning_fit
from ..small_federation import SmallModule, examples, same_bits

CPU = torch.device("cpu")


def loader(count: int = 27, batch_size: int = 8, seed: int = 3) -> DataLoader[Any]:
    return DataLoader(examples(count, seed), batch_size)


def client_trainer(module: L.LightningModule, **options: Any) -> ClientTrainer:
    return ClientTrainer(module, FitOptions(**options), CPU)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_alike(module: L.LightningModule, data: Any = None, after: Any = None, **options: Any) -> ClientTrainer:
    """Fit one copy under each trainer: bitwise the same weights and the same number of steps."""
    data = loader() if data is None else data
    reference, mine = copy.deepcopy(module), copy.deepcopy(module)
    fitted = lightning_fit(
        reference,
        data,
        max_epochs=options.get("local_epochs", 1) if "local_steps" not in options else -1,
        max_steps=options.get("local_steps", -1),
        accumulate_grad_batches=options.get("accumulate_grad_batches", 1),
        gradient_clip_val=options.get("gradient_clip_val"),
    )
    if "local_steps" in options:
        options["local_epochs"] = None
    trainer = client_trainer(mine, **options)
    num_steps, _ = trainer.fit(data)
    assert num_steps == fitted.global_step
    assert same_bits(weights(mine), weights(reference))
    assert not same_bits(weights(mine), weights(module)), "nothing was trained"
    return trainer


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: {"scheduler": torch.optim.lr_scheduler.StepLR(o, 2, 0.3), "interval": "step"},
    "epoch": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    "every second epoch": lambda o: {"scheduler": torch.optim.lr_scheduler.ExponentialLR(o, 0.5), "frequency": 2},
    "every third step": lambda o: {
        "scheduler": torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        "interval": "step",
        "frequency": 3,
    },
    "plateau by epoch": lambda o: {
        "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
        "monitor": "train_loss",
    },
    "plateau by step": lambda o: {
        "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0, factor=0.7),
        "monitor": "train_loss",
        "interval": "step",
    },
    "one cycle": lambda o: {
        "scheduler": torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=40),
        "interval": "step",
    },
    "warm-up, then cosine": lambda o: {
        "scheduler": torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 3), torch.optim.lr_scheduler.CosineAnnealingLR(o, 9)],
            [3],
        ),
        "interval": "step",
    },
    "chained": lambda o: {
        "scheduler": torch.optim.lr_scheduler.ChainedScheduler(
            [torch.optim.lr_scheduler.ConstantLR(o, 0.1, 3), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], o
        ),
        "interval": "step",
    },
    "cyclic": lambda o: {"scheduler": torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.2, 4), "interval": "step"},
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
}


class Scheduled(SmallModule):
    """Remembers the learning rate of every step."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.rates: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return {"optimizer": optimizer, "lr_scheduler": SCHEDULERS[self.name](optimizer)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self(inputs), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
