"""What cannot be trained is refused before round 1, and what is left out is said, with what to do instead."""

import threading
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from fedhq_lightning.errors import ConfigurationError

from .data import NUM_CLASSES, NUM_FEATURES, Clients
from .runs import run, seeded
from .styles import Plain, layers
from .styles_of_layers import Compiled
from .styles_of_training import BringsCallbacks, PlateauOnValidation


class Gan(L.LightningModule):
    """As Lightning's own examples write it: two optimizers, toggled by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(4, NUM_FEATURES), nn.Linear(NUM_FEATURES, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, _ = self.optimizers()  # type: ignore[misc]  # a list of two
        self.toggle_optimizer(first)
        loss = -self.discriminator(self.generator(torch.randn(len(batch[0]), 4))).mean()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)

    def configure_optimizers(self) -> Any:
        parts = self.generator, self.discriminator
        return [torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999)) for part in parts], []


class TwoOptimizers(Gan):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # type: ignore[override]  # gives a loss
        return self.discriminator(batch[0]).mean()  # type: ignore[no-any-return]  # a tensor


class OfLightning1(Plain):
    def validation_epoch_end(self, outputs: Any) -> None:
        self.log("val_loss", torch.stack(outputs).mean())


class OptimizerIndex(Plain):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]  # of old
        return super().training_step(batch, batch_idx)


class TakesLoader(Plain):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]  # Lightning's other flavor
        return super().training_step(*next(dataloader_iter)[:2])


class AsksForData(Plain):
    def on_train_epoch_end(self) -> None:
        self.log("classes", self.trainer.datamodule.num_classes)  # type: ignore[attr-defined]  # as many modules do


class AsksForCheckpoints(Plain):
    def on_train_epoch_end(self) -> None:
        self.trainer.save_checkpoint("last.ckpt")


class HoldsLock(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.writer = threading.Lock()


class HoldsGraph(Plain):
    """What a fit elsewhere left: a tensor that is part of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.last_loss = self(torch.zeros(2, NUM_FEATURES)).sum()


class LazyBuffers(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(16, NUM_CLASSES))


class PlateauOnNothing(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_acc"}}


class NoOptimizer(Plain):
    def configure_optimizers(self) -> Any:
        return None


class NoStep(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = layers()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ExtraState(Plain):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


class HidesFrozen(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2).requires_grad_(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "backbone" not in name}


class HidesTrained(HidesFrozen):
    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.backbone.requires_grad_(True)


class LateLayer(Plain):
    def on_fit_start(self) -> None:
        self.late = nn.Linear(NUM_CLASSES, NUM_CLASSES)


class LateBuffer(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not hasattr(self, "largest"):
            self.register_buffer("largest", torch.zeros(2))
        return super().training_step(batch, batch_idx)


class OnlyEmbeddings(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Bilinear(2, 2, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net[0](batch[0][:, :2], batch[0][:, 2:4]).mean()


class SilentDirection(Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_reward", -F.cross_entropy(self(batch[0]), batch[1]))


def compiled_whole() -> Any:
    return torch.compile(Plain(), backend="eager")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Gan, r"Gan: manual optimization .* return the loss from training_step and let configure_optimizers name one"),
        (TwoOptimizers, r"returned 2 optimizers; .* return one"),
        (OfLightning1, r"OfLightning1\.validation_epoch_end: Lightning 2 .* reduce it in on_validation_epoch_end"),
        (OptimizerIndex, r"training_step takes optimizer_idx: there is one optimizer; leave the argument out"),
        (TakesLoader, r"training_step takes dataloader_iter: .* take `batch, batch_idx`"),
        (AsksForData, r"no 'datamodule'; hand what the module needs of the data to it as an argument"),
        (AsksForCheckpoints, r"a client's trainer has no 'save_checkpoint'; it has .*max_epochs"),
        (HoldsLock, r"HoldsLock: self\.writer \(lock\) cannot be copied.* make it in on_fit_start"),
        (HoldsGraph, r"HoldsGraph: self\.last_loss \(Tensor\) cannot be copied"),
        (LazyBuffers, r"net\.1\.running_mean.* lazy layers.* call the module once on a batch before fit"),
        (PlateauOnNothing, r"ReduceLROnPlateau\) monitors 'val_acc', .* log it in training_step or take another"),
        (NoOptimizer, r"configure_optimizers returned None; return one optimizer"),
        (NoStep, r"NoStep has no training_step; .* add one"),
        (ExtraState, r"ExtraState: state '_extra_state' is a dict, .* make it a buffer"),
        (HidesFrozen, r"state_dict leaves out backbone\.weight.* set self\.strict_loading = False"),
        (HidesTrained, r"state_dict leaves out backbone\.weight.* are trained.* freeze them"),
        (
            LateLayer,
            r"LateLayer makes late\.weight, late\.bias while it runs.* make layers and buffers in __init__, setup",
        ),
        (LateBuffer, r"LateBuffer makes largest while it runs.* or a buffer with persistent=False"),
        (OnlyEmbeddings, r"OnlyEmbeddings has nothing to quantize .* leave the scheme out"),
        (SilentDirection, r"'val_reward' does not tell .* set trainer\.monitor_mode to min or max"),
        (compiled_whole, r"got a compiled Plain; give the LightningModule itself"),
        (nn.Identity, r"module: got Identity; give a LightningModule"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_before_round_1(make: Callable[[], Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(seeded(make), Clients(), default_root_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (BringsCallbacks, r"BringsCallbacks\.configure_callbacks: .* give FederatedTrainer those of fedhq_lightning"),
        (PlateauOnValidation, r"monitors 'val_loss', which validation logs, .* trainer\.round_lr changes it"),
        (Compiled, r"Compiled: net is wrapped by torch\.compile; clients run it eagerly"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.usefixtures("no_program")
def test_what_is_left_out_is_said(make: Callable[[], Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        run(seeded(make), Clients())
