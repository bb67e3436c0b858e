"""LightningModules in the styles found in the wild: how they log and how they are built."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from .data import (
    NUM_CLASSES,
    NUM_FEATURES,
    Clients,
    as_dataclass,
    as_dict,
    as_named_tuple,
    as_nested,
    images,
)


@dataclass(frozen=True)
class Style:
    """One way to write a LightningModule.

    Attributes:
        module: Makes the module.
        data: Makes its clients.
        exports: Whether the deployed model is a `model.pt2`.
        builds: Whether the module makes layers once it is run.
    """

    module: Callable[[], L.LightningModule]
    data: Callable[[], Clients] = field(default=Clients)
    exports: bool = True
    builds: bool = False

    @property
    def is_about_layers(self) -> bool:
        """Whether the deployed model differs from the other styles' in more than its weights."""
        return self.module.__module__.endswith("styles_of_layers")


STYLES: dict[str, Style] = {}


def style(
    name: str, data: Callable[[], Clients] = Clients, exports: bool = True, builds: bool = False
) -> Callable[[type], type]:
    """Enter a class under a name."""

    def enter(kind: type) -> type:
        STYLES[name] = Style(kind, data, exports, builds)
        return kind

    return enter


def layers(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(NUM_FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES)
    )


class Plain(L.LightningModule):
    """What most of the others add one thing to."""

    def __init__(self) -> None:
        super().__init__()
        self.net = layers()

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.net(inputs)
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels = batch
        loss = F.cross_entropy(self(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels = batch
        self.log("val_loss", F.cross_entropy(self(inputs), labels))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


style("plain")(Plain)


@style("self.log in all its forms")
class LogsAllForms(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self(inputs), labels)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        self.log("train/step_only", loss, on_step=True, on_epoch=False, logger=False)
        self.log("train/epoch_only", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        self.log("train/count", float(len(labels)), reduce_fx="sum", on_epoch=True, on_step=False)
        self.log("train/worst", loss, reduce_fx=torch.max, on_epoch=True, on_step=False, rank_zero_only=True)
        self.log_dict({"train/a": loss, "train/b": loss.item()}, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self(inputs), labels)
        self.log("val/loss", loss, prog_bar=True, sync_dist=True)
        self.log("val/best_batch", loss, reduce_fx="min")
        self.log("val/one_element", loss.reshape(1, 1), add_dataloader_idx=False, on_step=True, on_epoch=True)
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log("val/epoch", self.current_epoch)
        self.log("hp_metric", 1.0)


@style("Metric objects and collections are logged")
class LogsMetrics(Plain):
    def __init__(self) -> None:
        super().__init__()
        metrics = MetricCollection({"accuracy": MulticlassAccuracy(NUM_CLASSES), "f1": MulticlassF1Score(NUM_CLASSES)})
        self.train_metrics = metrics.clone(prefix="train_")
        self.val_metrics = metrics.clone(prefix="val_")
        self.val_accuracy = torchmetrics.Accuracy("multiclass", num_classes=NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        scores = self(inputs)
        self.train_metrics(scores, labels)
        self.log_dict(self.train_metrics, on_step=True, on_epoch=True)
        return F.cross_entropy(scores, labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        scores = self(inputs)
        self.val_accuracy(scores, labels)
        self.log("val_micro_accuracy", self.val_accuracy)
        self.val_metrics.update(scores, labels)
        self.log_dict(self.val_metrics)
        self.log("val_loss", F.cross_entropy(scores, labels))


@style("metrics updated, computed and reset by hand")
class MetricsByHand(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict({"val": MulticlassAccuracy(NUM_CLASSES), "mean": torchmetrics.MeanMetric()})
        self.best = torchmetrics.MaxMetric()
        self.train_accuracy = MulticlassAccuracy(NUM_CLASSES)

    def on_train_start(self) -> None:
        self.metrics["val"].reset()
        self.best.reset()

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        inputs, labels = batch
        scores = self(inputs)
        loss = F.cross_entropy(scores, labels)
        self.log("train/acc", self.train_accuracy(scores, labels), prog_bar=True)
        return {"loss": loss, "predictions": scores.argmax(1), "targets": labels}

    def on_train_epoch_end(self) -> None:
        self.log("train/acc_epoch_end", self.train_accuracy.compute())
        self.train_accuracy.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        scores = self(inputs)
        self.metrics["val"].update(scores, labels)
        self.metrics["mean"].update(F.cross_entropy(scores, labels), weight=len(labels))

    def on_validation_epoch_end(self) -> None:
        accuracy = self.metrics["val"].compute()
        self.best(accuracy)
        self.log("val/acc", accuracy, sync_dist=True)
        self.log("val/acc_best", self.best.compute(), sync_dist=True, prog_bar=True)
        self.log("val/loss", self.metrics["mean"].compute())
        for metric in self.metrics.values():
            metric.reset()


@style("outputs kept in a list and reduced at the end")
class KeepsOutputs(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.validation_step_outputs: list[Tensor] = []
        self.training_step_outputs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.training_step_outputs.append(loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("training_epoch_mean", torch.stack(self.training_step_outputs).mean())
        self.training_step_outputs.clear()

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.validation_step_outputs.append(loss)
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.stack(self.validation_step_outputs).mean())
        self.validation_step_outputs.clear()


@style("save_hyperparameters, and a module as an argument")
class SavesHyperparameters(Plain):
    def __init__(
        self,
        net: nn.Module | None = None,
        optimizer: Any = None,
        lr: float = 0.1,
        names: tuple[str, ...] = ("a", "b"),
        **more: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = layers() if net is None else net

    def configure_optimizers(self) -> Any:
        if self.hparams.optimizer is None:  # type: ignore[attr-defined]  # hparams is a dict with attributes
            return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])
        return self.hparams.optimizer(self.trainer.model.parameters())  # type: ignore[attr-defined]


def _hydra() -> L.LightningModule:
    from functools import partial

    return SavesHyperparameters(layers(), partial(torch.optim.Adam, lr=0.01), depth=3)


STYLES["everything handed over, as with Hydra"] = Style(_hydra)


@style("batches are dicts", lambda: Clients(images, as_dict))
class DictBatches(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, NUM_CLASSES))

    def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        loss = F.cross_entropy(self(batch["image"]), batch["label"])
        self.log("train_loss", loss, batch_size=batch["image"].shape[0])
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert batch["names"][0] == "row 0"
        size = len(batch["label"])
        self.log("val_loss", F.cross_entropy(self(batch["image"]), batch["label"]), batch_size=size)


@style("batches are dataclasses in dataclasses", lambda: Clients(collate=as_dataclass))
class DataclassBatches(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch.views.first) - self(batch.views.second), batch.labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        correct = self(batch.views.first).argmax(1) == batch.labels
        self.log("val_acc", correct.float().mean(), batch_size=len(batch.labels))


@style("batches are named tuples", lambda: Clients(collate=as_named_tuple))
class NamedTupleBatches(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch.inputs), batch.labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch.inputs), batch.labels))


@style("contrastive, with two views and a temperature", lambda: Clients(collate=as_nested))
class Contrastive(Plain):
    """As SimCLR in lightning-bolts, and CLIP elsewhere: a scalar parameter, and a forward with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.projection = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8, bias=False))
        self.temperature = nn.Parameter(torch.tensor(math.log(5.0)))

    def forward(self, inputs: Tensor) -> Any:
        hidden = self.encoder(inputs)
        return hidden, F.normalize(self.projection(hidden), dim=1)

    def step(self, batch: Any, stage: str) -> Tensor:
        (first, second), _ = batch
        similarity = self(first)[1] @ self(second)[1].T * self.temperature.exp()
        loss = F.cross_entropy(similarity, torch.arange(len(first), device=self.device))
        self.log(f"{stage}_ntx_loss", loss, on_step=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.step(batch, "train")
        return {"loss": loss, "log": {"train_ntx_loss": loss.detach()}}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"val_loss": self.step(batch, "val")}


@style("several validation loaders", lambda: Clients(num_val_loaders=3))
class SeveralLoaders(Plain):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss)
        self.log(f"val_loss_of_{dataloader_idx}", loss, add_dataloader_idx=False)


@style("a log method of its own, which calls Lightning's")
class OwnLog(Plain):
    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        super().log(f"mine/{name}", value, *args, **kwargs)


@style("an attribute of the name log")
class OtherLog(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.log = []  # type: ignore[assignment,method-assign]  # that is what this is about

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log.append(loss.item())  # type: ignore[attr-defined]  # a list
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log.append(F.cross_entropy(self(batch[0]), batch[1]).item())  # type: ignore[attr-defined]  # a list


@style("no validation_step", exports=False)
class TrainsOnly(Plain):
    validation_step = L.LightningModule.validation_step


@style("no validation_step, with example_input_array")
class TrainsOnlyWithExample(TrainsOnly):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, NUM_FEATURES)


@style("nothing logged at all")
class LogsNothing(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"val_loss": F.cross_entropy(self(batch[0]), batch[1])}
