"""Hooks and trainer attributes are those of Lightning's own Trainer."""

import copy
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError

from ..beside_lightning import lightning_fit, without_advice
from ..federated.client_fits import Scheduled, client_trainer, loader
from ..small_federation import SmallModule

HOOKS = (
    "configure_optimizers",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "on_train_batch_start",
    "training_step",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_step",
    "lr_scheduler_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "validation_step",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_test_start",
    "on_test_epoch_start",
    "on_test_batch_start",
    "test_step",
    "on_test_batch_end",
    "on_test_epoch_end",
    "on_test_end",
)


def shown(value: Any) -> Any:
    """An argument as something comparable."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.requires_grad)
    if isinstance(value, dict):
        return {name: shown(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    if isinstance(value, torch.optim.Optimizer | LightningOptimizer):
        return "optimizer"
    return value if isinstance(value, int | float | str | bool | None) else type(value).__name__


def recording(base: type[L.LightningModule]) -> type[L.LightningModule]:
    """A subclass that notes each hook's name and arguments, and the trainer's counters at that moment."""

    def wrap(name: str) -> Any:
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = {f"{i}": shown(value) for i, value in enumerate((*args, *kwargs.values()))}
            if name in ("optimizer_step", "lr_scheduler_step", "transfer_batch_to_device"):
                given = {}
            trainer = self.trainer
            self.calls.append((name, given, trainer.current_epoch, trainer.global_step, torch.is_grad_enabled()))
            return getattr(base, name)(self, *args, **kwargs)

        return hook

    return type("Recording", (base,), {name: wrap(name) for name in HOOKS} | {"calls": []})


class TestHooks:
    @pytest.mark.parametrize("every", [1, 3])
    @pytest.mark.parametrize("name", ["step", "epoch", "plateau by epoch", "plateau by step"])
    def test_fit_calls_them_as_lightning_does(self, every: int, name: str) -> None:
        class NoValidation(Scheduled):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = super().training_step(batch, batch_idx)
                return {"loss": loss, "twice": 2 * loss} if batch_idx == 0 else loss

        kind = recording(NoValidation)
        calls = []
        for fit in (
            lambda module: lightning_fit(module, loader(), max_epochs=2, accumulate_grad_batches=every),
            lambda module: client_trainer(module, local_epochs=2, accumulate_grad_batches=every).fit(loader()),
        ):
            module = kind(name)
            module.calls = []
            fit(module)
            calls.append(module.calls)
        assert calls[0] == calls[1]
        assert len(calls[0]) > 80

    @pytest.mark.parametrize("stage", ["validate", "test"])
    @pytest.mark.parametrize("num_loaders", [1, 2])
    def test_evaluation_calls_them_as_lightning_does(self, stage: str, num_loaders: int) -> None:
        from ..beside_lightning import lightning_trainer

        class TwoLoaders(SmallModule):
            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
                super().validation_step(batch, batch_idx)
                return {"seen": len(batch[0])}

            def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
                super().test_step(batch, batch_idx)

        kind, loaders = recording(TwoLoaders), [loader(20), loader(11)][:num_loaders]
        reference, mine = kind(), kind()
        reference.calls, mine.calls = [], []
        with without_advice():
            getattr(lightning_trainer(), stage)(reference, loaders, verbose=False)
        client_trainer(mine).evaluate(loaders, {"validate": "validation", "test": "test"}[stage])
        assert mine.calls == reference.calls


class TestTrainerAttributes:
    @pytest.mark.parametrize("options", [{"local_epochs": 3}, {"local_epochs": 2, "accumulate_grad_batches": 3}])
    def test_are_lightnings(self, options: dict[str, int]) -> None:
        seen: list[dict[str, Any]] = []

        class Looks(SmallModule):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                total = int(self.trainer.estimated_stepping_batches)
                return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total)]

            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                names = ("max_epochs", "estimated_stepping_batches", "current_epoch", "global_step", "world_size")
                names += ("num_training_batches", "training", "validating", "sanity_checking", "is_global_zero")
                names += ("gradient_clip_val", "accumulate_grad_batches", "global_rank", "local_rank")
                seen[-1] |= {f"{batch_idx} {name}": getattr(self.trainer, name) for name in names}
                seen[-1][f"{batch_idx} own"] = (self.current_epoch, self.global_step, self.device, self.global_rank)
                seen[-1][f"{batch_idx} rates"] = self.lr_schedulers().get_last_lr()
                seen[-1][f"{batch_idx} lr"] = self.optimizers().param_groups[0]["lr"]
                seen[-1][f"{batch_idx} gathered"] = self.all_gather(torch.ones(2)).tolist()
                self.print("", end="")

        seen.append({})
        lightning_fit(
            Looks(),
            loader(),
            max_epochs=options["local_epochs"],
            accumulate_grad_batches=options.get("accumulate_grad_batches", 1),
        )
        seen.append({})
        client_trainer(Looks(), **options).fit(loader())
        assert seen[0] == seen[1]

    def test_steps_are_max_steps(self) -> None:
        trainer = client_trainer(SmallModule(), local_epochs=None, local_steps=7)
        trainer.fit(loader())
        assert (trainer.max_steps, trainer.estimated_stepping_batches, trainer.max_epochs) == (7, 7, -1)

    def test_an_unknown_one_says_what_there_is(self) -> None:
        trainer = client_trainer(SmallModule())
        with pytest.raises(AttributeError, match=r"no 'save_checkpoint'; it has .*current_epoch.*max_epochs"):
            _ = trainer.save_checkpoint
        with pytest.raises(ConfigurationError, match="no 'datamodule'; hand what the module needs of the data to it"):
            _ = trainer.datamodule
        assert getattr(trainer, "datamodule", None) is None
        assert not hasattr(trainer, "__array__")

    def test_the_logger_takes_everything_and_keeps_nothing(self) -> None:
        class Writes(SmallModule):
            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                self.logger.experiment.add_scalar("loss", 1.0, batch_idx)
                self.logger.experiment.config["lr"] = 0.1
                with self.logger.experiment.run(0) as run:
                    run.log({"loss": 1.0})
                self.logger.log_metrics({"loss": 1.0}, step=batch_idx)
                self.logger.log_image(key="picture", images=[batch[0]])
                self.calls += 1

        module = Writes()
        module.calls = 0
        _, metrics = client_trainer(copy.deepcopy(module)).fit(loader())
        assert metrics.keys() == {"train_loss"}
        trainer = client_trainer(module)
        trainer.fit(loader())
        assert module.calls == 4
        assert copy.deepcopy(trainer.logger).experiment.add_scalar(1) is not None
        assert trainer.logger.save_dir is None

    def test_the_class_and_the_original_are_left_alone(self) -> None:
        module = SmallModule()
        client_trainer(copy.deepcopy(module)).fit(loader())
        assert "log" not in vars(module)
        assert SmallModule.log is L.LightningModule.log
        assert module._trainer is None

    def test_a_copy_is_free_of_its_trainer(self) -> None:
        module = SmallModule()
        trainer = client_trainer(module)
        trainer.fit(loader())
        again = client_trainer(copy.deepcopy(module))
        assert again.lightning_module.trainer is again
        assert "train_loss" in again.fit(loader())[1]
        assert module.trainer is trainer
