"""What the tests of silos run in two processes: `python silo_script.py FOLDER JOB`, several fits one after another."""

import atexit
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import CatMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from fedhq_lightning.callbacks import FederatedAveraging, FixedAllocator, HybridAllocator
from fedhq_lightning.errors import ConfigurationError

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.logs_everywhere import CallbackLogsEverywhere, LogsEverywhere, loaders

SIZES = (24, 56)
"""3 and 7 batches."""
HELD_OUT = {"validation": ((19, 5), (42, 12)), "test": ((13,), (36,))}
"""By stage and silo, examples of every loader of `DataOfLogs`."""


def examples(count: int, seed: int) -> TensorDataset:
    inputs = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    projections = torch.randn(12, 3, generator=torch.Generator().manual_seed(999))
    return TensorDataset(inputs, (inputs @ projections).argmax(1))


class Data(pl.LightningDataModule):
    def __init__(self, shuffle: bool) -> None:
        super().__init__()
        self.shuffle = shuffle

    def train_dataloader(self) -> Any:
        rank = self.trainer.global_rank
        return DataLoader(examples(SIZES[rank], 1 + rank), batch_size=8, shuffle=self.shuffle)

    def val_dataloader(self) -> Any:
        rank = self.trainer.global_rank
        return DataLoader(examples(20 + 20 * rank, 100 + rank), batch_size=8)

    test_dataloader = predict_dataloader = val_dataloader


class DataOfLogs(Data):
    """Several loaders for validation; no two silos have as many examples."""

    def val_dataloader(self) -> Any:
        return loaders(HELD_OUT["validation"][self.trainer.global_rank], 100)

    def test_dataloader(self) -> Any:
        return loaders(HELD_OUT["test"][self.trainer.global_rank], 100)


class Looks(Checkpoint):
    """Remembers what EarlyStopping and ModelCheckpoint find when they act."""

    def __init__(self) -> None:
        self.found: list[tuple[str, dict[str, float]]] = []

    def look(self, when: str, trainer: pl.Trainer) -> None:
        if not trainer.sanity_checking:
            self.found.append((when, {name: float(value) for name, value in trainer.callback_metrics.items()}))

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.look("train", trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.look("validation", trainer)

    def on_test_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.look("test", trainer)


class ReadsAlone(pl.Callback):
    """One silo alone looks into what is logged, wherever it can."""

    def read(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_rank == 0:
            assert trainer.callback_metrics is not trainer.logged_metrics is not trainer.progress_bar_metrics

    on_train_epoch_start = on_train_batch_end = on_train_epoch_end = on_train_end = read
    on_validation_start = on_validation_batch_end = on_validation_epoch_end = on_validation_end = read
    on_test_start = on_test_batch_end = on_test_epoch_end = on_test_end = read


class Plain(pl.LightningModule):
    """Nothing random."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.seen: list[float] = []

    def forward(self, inputs: Any) -> Any:
        return self.net(inputs)

    def loss(self, batch: Any) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Module(Plain):
    """Randomness, schedulers, and every way in which a step may ask the other processes."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(3, nn.Dropout(0.2))
        self.step_accuracy = MulticlassAccuracy(3, dist_sync_on_step=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("step_accuracy", self.step_accuracy(self.net(batch[0]), batch[1]))
        self.trainer.strategy.barrier("in a step")
        assert self.all_gather(loss.detach()).shape == (1,)
        assert self.trainer.strategy.broadcast(batch_idx) == batch_idx
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        output = self(batch[0])
        self.accuracy(output, batch[1])
        self.log("val_loss", nn.functional.cross_entropy(output, batch[1]))
        self.log("val_accuracy", self.accuracy, on_step=True, on_epoch=True, sync_dist=True)
        if self.trainer.global_rank == 1:
            self.log("only_on_1", 1.0)

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.seen.append(float(sum(value.double().sum() for value in self.state_dict().values())))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class BreaksOnce(Plain):
    """Silo 1's weights are lost in the second epoch."""

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_rank == 1 and self.trainer.current_epoch == 1:
            self.net[0].weight.data[0, 0] = float("nan")


class Skips(Plain):
    """Silo 1 skips the second epoch, and both skip the third; the first batch of each is seen by the layers."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        skips = self.trainer.current_epoch == 2 or (self.trainer.current_epoch, self.trainer.global_rank) == (1, 1)
        if skips:
            self.net(batch[0] + 5)
        return -1 if skips else None


class Stops(Plain):
    """Logs what EarlyStopping watches; and one silo may ask to stop at a batch of an epoch."""

    def __init__(self, at: tuple[int, int, int] = (-1, -1, -1)) -> None:
        super().__init__()
        self.at = at

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.trainer.should_stop |= self.at == (self.trainer.global_rank, self.trainer.current_epoch, batch_idx)
        return loss


class StopsLate(Plain):
    """Silo 0 alone asks to stop, after everything that a callback does at the end of an epoch."""

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop |= self.trainer.global_rank == 0 and self.trainer.current_epoch == 1


class Particular(Plain):
    """Logs what differs from silo to silo after validation, and is watched by it."""

    def __init__(self) -> None:
        super().__init__()
        self.computed, self.apart = MeanMetric(), MeanMetric(sync_on_compute=False)
        self.of_one, self.of_nobody = MeanMetric(), MeanMetric(distributed_available_fn=lambda: True)
        self.lists = CatMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        self.of_nobody.update(loss.detach())
        self.log("asks_in_a_step", self.of_nobody.compute())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.computed.update(float(self.trainer.global_rank))
        self.log("twice", 1.0)

    def on_validation_epoch_end(self) -> None:
        rank, epoch = self.trainer.global_rank, self.trainer.current_epoch
        self.log("score", [0.5, 0.9, 0.7, 0.3][epoch] if rank else 0.1 * epoch, prog_bar=True)
        self.log("computed", self.computed.compute())
        self.computed.reset()
        self.apart.update(2.0 + rank)
        self.log("apart", self.apart)
        self.log("twice", 2.0 + rank)
        self.log("loss_of_one_is_lost", float("nan") if rank else 1.0)
        self.log("largest", float("nan") if rank == 0 else 1.0, reduce_fx="max")
        if rank:
            self.lists.update(torch.tensor([5.0, 7.0]))
        self.log("number", self.lists.compute().sum())
        self.lists.reset()
        if rank:
            self.of_one.update(4.0)
            self.log("of_one", self.of_one)

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self.log("tested", 1.0 + self.trainer.global_rank)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "score"}}


class Raises(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank == 1 and batch_idx == 2:
            raise ValueError("silo 1 is out of order")
        return self.loss(batch)


def fit(folder: Path, name: str, module: pl.LightningModule, **settings: Any) -> pl.Trainer:
    """One fit, and what the tests look at in FOLDER/NAME-RANK.pt."""
    callbacks = settings.pop("callbacks")
    ckpt_path, data = settings.pop("ckpt_path", None), settings.pop("data", Data)(settings.pop("shuffle", True))
    given = {"logger": False, "enable_checkpointing": False, "max_epochs": 3} | settings
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="fedhq",
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder / name,
        callbacks=callbacks,
        **given,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data, ckpt_path=ckpt_path)
    torch.save(
        {
            "state": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict() if trainer.optimizers else {},
            "schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
            "seen": getattr(module, "seen", []),
            "kinds": [type(layer).__name__ for layer in module.modules()],
            "warnings": [str(each.message) for each in caught],
        },
        folder / f"{name}-{trainer.global_rank}.pt",
    )
    return trainer


def by_hand(folder: Path) -> None:
    """fp and FedAvg, which the test computes by hand; and a silo whose update is lost."""
    for name, keys in (("first", None), ("again", folder / "keys"), ("forged", folder / "wrong-keys")):
        averaging = FederatedAveraging(retake_batch_statistics=False, keys=keys)
        fit(folder, name, Plain(), callbacks=[averaging], shuffle=False)
    fit(folder, "breaks", BreaksOnce(), callbacks=[FederatedAveraging(uplink="delta")], shuffle=False)
    fit(folder, "skips", Skips(), callbacks=[FederatedAveraging(retake_batch_statistics=False)], shuffle=False)
    stopping = EarlyStopping("train_loss", patience=1, mode="max", check_on_train_epoch_end=True)
    fit(folder, "stopped", Stops(), callbacks=[FederatedAveraging(3), stopping], max_epochs=9)
    fit(folder, "told", Stops(at=(0, 3, 1)), callbacks=[FederatedAveraging(3)], max_epochs=9)
    fit(folder, "late", StopsLate(), callbacks=[FederatedAveraging(3)], max_epochs=9)
    logged(folder)


def logged(folder: Path) -> None:
    """What is logged from everywhere, and what a silo alone knows."""
    module, looks = LogsEverywhere(), Looks()
    callbacks = [ReadsAlone(), CallbackLogsEverywhere(), FederatedAveraging(), looks]
    trainer = fit(
        folder, "logged", module, callbacks=callbacks, max_epochs=2, data=DataOfLogs, enable_checkpointing=True
    )
    tested = trainer.test(module, DataOfLogs(False), verbose=False)
    said = [tuple(note) for note in module.notes]
    rank = trainer.global_rank
    torch.save({"said": said, "found": looks.found, "tested": tested}, folder / f"said-{rank}.pt")

    best = ModelCheckpoint(monitor="score", mode="max", filename="{epoch}-{score:.3f}")
    stopping = EarlyStopping("score", mode="max", patience=2)
    watched: dict[str, Any] = {"max_epochs": 4, "enable_checkpointing": True}
    trainer = fit(folder, "watched", Particular(), callbacks=[stopping, FederatedAveraging(), best], **watched)
    tested = trainer.test(Particular(), Data(False), ckpt_path="best", verbose=False)
    found = {"path": best.best_model_path, "score": float(best.best_model_score), "tested": tested[0]}
    torch.save(found, folder / f"watched-best-{rank}.pt")
    refused_monitors(folder)


def refused_monitors(folder: Path) -> None:
    """Callbacks that look at what each silo has a value of its own of."""
    refused = []
    for watches in (ModelCheckpoint(monitor="train_loss"), EarlyStopping("of_one", strict=False)):
        settings: dict[str, Any] = {"max_epochs": 1, "enable_checkpointing": True}
        try:
            fit(folder, "refused", Particular(), callbacks=[FederatedAveraging(), watches], **settings)
        except ConfigurationError as error:
            refused.append(str(error))
    (folder / f"refused-{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(refused))


def quantized(folder: Path) -> None:
    """Lanes, checkpoints, validation, and the other entry points of the Trainer."""
    modes = {0: "ptq", 1: "qat"}

    def settings(every_n_epochs: int = 1) -> list[Any]:
        monitor = {"monitor": "quantized/val_loss"} if every_n_epochs == 1 else {}
        checkpoint = ModelCheckpoint(save_top_k=-1, filename="{epoch}", **monitor)
        return [FederatedAveraging(every_n_epochs, "w4a8"), FixedAllocator(modes), checkpoint]

    module, on = Module(), {"enable_checkpointing": True}
    trainer = fit(
        folder, "unbroken", module, callbacks=settings(), max_epochs=4, logger=CSVLogger(folder, "logs", "0"), **on
    )
    data = Data(False)
    evaluated = {
        "test": trainer.test(module, data, verbose=False)[0],
        "validate": trainer.validate(module, data, verbose=False)[0],
        "predicted": len(trainer.predict(module, data)),
    }
    torch.save(evaluated, folder / f"evaluated-{trainer.global_rank}.pt")
    saved = folder / "logs/0/checkpoints/epoch=1.ckpt"
    fit(folder, "resumed", Module(), callbacks=settings(), max_epochs=4, ckpt_path=saved, **on)
    within: dict[str, Any] = {"max_epochs": 5, "limit_val_batches": 0, **on}
    fit(folder, "unbroken-2", Module(), callbacks=settings(2), **within)
    saved = folder / "unbroken-2/checkpoints/epoch=2.ckpt"
    fit(folder, "resumed-2", Module(), callbacks=settings(2), ckpt_path=saved, **within)
    best = ModelCheckpoint(monitor="val_loss")
    allocated = [FederatedAveraging(scheme="w4a8"), HybridAllocator(), best]
    trainer = fit(folder, "hybrid", Module(), callbacks=allocated, **on)
    tested = trainer.test(Module(), data, ckpt_path="best", verbose=False)[0]["val_loss"]
    found = {"path": best.best_model_path, "score": float(best.best_model_score), "tested": tested}
    torch.save(found, folder / f"best-{trainer.global_rank}.pt")


def tell_of_the_group(folder: Path) -> None:
    """Called as the process ends, after what was registered later."""
    rank = os.environ.get("LOCAL_RANK", "0")
    (folder / f"group-{rank}.json").write_text(json.dumps(torch.distributed.is_initialized()))


def raises(folder: Path) -> None:
    """A silo that fails while the other waits for it; each tells what it met in a file of its own."""
    try:
        fit(folder, "raises", Raises(), callbacks=[FederatedAveraging()])
    except Exception as error:
        rank = os.environ.get("LOCAL_RANK", "0")
        (folder / f"raised-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    torch.set_num_threads(1)
    atexit.register(tell_of_the_group, Path(sys.argv[1]))
    {"by_hand": by_hand, "quantized": quantized, "raises": raises}[sys.argv[2]](Path(sys.argv[1]))
    print(json.dumps("done"))
