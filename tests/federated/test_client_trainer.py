"""An unmodified module behaves under `ClientTrainer` as it does under Lightning's own Trainer."""

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.client_trainer import ClientTrainer, FitOptions

from ..beside_lightning import lightning_fit, lightning_validate, without_advice
from ..small_federation import NUM_CLASSES, NUM_FEATURES, SmallModule, examples, same_bits

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


class TestFit:
    @pytest.mark.parametrize("epochs", [1, 3])
    def test_epochs(self, epochs: int) -> None:
        trainer = assert_alike(SmallModule(), local_epochs=epochs)
        assert trainer.current_epoch == epochs
        assert trainer.global_step == 4 * epochs

    @pytest.mark.parametrize("steps", [1, 4, 6, 9])
    def test_steps_go_round_the_data(self, steps: int) -> None:
        assert_alike(SmallModule(), local_steps=steps)

    @pytest.mark.parametrize("every", [2, 3, 4, 9])
    def test_accumulation_ends_with_a_partial_window(self, every: int) -> None:
        trainer = assert_alike(SmallModule(), local_epochs=2, accumulate_grad_batches=every)
        assert trainer.global_step == 2 * -(-4 // every)

    def test_accumulation_with_steps(self) -> None:
        assert_alike(SmallModule(), local_steps=3, accumulate_grad_batches=3)

    def test_clipping_by_norm(self) -> None:
        assert_alike(SmallModule(), gradient_clip_val=0.05)
        clipped, free = SmallModule(), SmallModule()
        client_trainer(clipped, gradient_clip_val=0.05).fit(loader())
        client_trainer(free).fit(loader())
        assert not same_bits(weights(clipped), weights(free))

    def test_clipping_of_the_modules_own(self) -> None:
        class ClipsByValue(SmallModule):
            def configure_gradient_clipping(
                self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
            ) -> None:
                self.clip_gradients(optimizer, gradient_clip_val=1e-3, gradient_clip_algorithm="value")

        assert_alike(ClipsByValue())

    def test_optimizer_step_of_the_modules_own(self) -> None:
        class Warmup(SmallModule):
            def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
                for group in optimizer.param_groups:
                    group["lr"] = 0.02 * (self.trainer.global_step + 1) + 0.1 * epoch
                optimizer.step(closure=optimizer_closure)

        assert_alike(Warmup(), local_epochs=2)

    def test_lbfgs_calls_the_closure_often(self) -> None:
        class Lbfgs(SmallModule):
            def configure_optimizers(self) -> Any:
                return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

        assert_alike(Lbfgs())

    def test_training_step_may_return_a_dict(self) -> None:
        class ReturnsDict(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return {"loss": super().training_step(batch, batch_idx), "more": 3}

        assert_alike(ReturnsDict())

    def test_training_step_may_return_none(self) -> None:
        class Skips(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return None if batch_idx == 1 else super().training_step(batch, batch_idx)

        assert_alike(Skips())
        assert_alike(Skips(), accumulate_grad_batches=2)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ({"logits": 1}, "'loss'"),
            (3.5, "training_step returned float"),
            ([1], "training_step returned list"),
        ],
    )
    def test_training_step_may_not_return_anything_else(self, answer: Any, message: str) -> None:
        class Wrong(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return answer

        with pytest.raises(ConfigurationError, match=message):
            client_trainer(Wrong()).fit(loader())

    @pytest.mark.parametrize("signature", ["batch", "index", "loader", "named"])
    def test_training_step_may_take_fewer_arguments(self, signature: str) -> None:
        class OnlyBatch(SmallModule):
            def training_step(self, batch: Any) -> Any:
                return nn.functional.cross_entropy(self(batch[0]), batch[1])

        class WithIndex(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return (batch_idx + 1) * nn.functional.cross_entropy(self(batch[0]), batch[1])

        class WithLoader(SmallModule):
            def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
                return (batch_idx + 1 + dataloader_idx) * nn.functional.cross_entropy(self(batch[0]), batch[1])

        class Named(SmallModule):
            def training_step(self, examples: Any, number: int) -> Any:
                return (number + 1) * nn.functional.cross_entropy(self(examples[0]), examples[1])

        assert_alike({"batch": OnlyBatch, "index": WithIndex, "loader": WithLoader, "named": Named}[signature]())

    def test_frozen_submodules_keep_their_mode_and_weights(self) -> None:
        class Frozen(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = (
                    nn.Sequential(nn.BatchNorm1d(NUM_FEATURES), nn.Dropout(0.5)).eval().requires_grad_(False)
                )

            def forward(self, inputs: Tensor) -> Tensor:
                assert not self.backbone.training
                return super().forward(self.backbone(inputs))

        module = Frozen()
        before = weights(module.backbone)
        trainer = client_trainer(module)
        trainer.fit(loader())
        trainer.evaluate([loader()])
        assert module.training
        assert module.net.training
        assert not module.backbone.training
        assert same_bits(weights(module.backbone), before)

    def test_a_module_may_stop_its_fit(self) -> None:
        class Stops(SmallModule):
            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                if self.global_step == 2:
                    self.trainer.should_stop = True

        assert client_trainer(Stops(), local_epochs=5).fit(loader())[0] == 2
        assert client_trainer(Stops(), local_epochs=None, local_steps=50).fit(loader())[0] == 2

    def test_a_module_may_skip_the_rest_of_an_epoch(self) -> None:
        class SkipsRest(SmallModule):
            def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
                return -1 if batch_idx == self.current_epoch + 1 else None

        trainer = assert_alike(SkipsRest(), local_epochs=2)
        assert trainer.global_step == 3

    @pytest.mark.parametrize("options", [{"local_epochs": 2}, {"local_epochs": None, "local_steps": 3}])
    def test_a_loader_without_batches_ends_at_once(self, options: dict[str, Any]) -> None:
        module = SmallModule()
        before = weights(module)
        small = DataLoader(examples(3, 1), 8, drop_last=True)
        assert client_trainer(module, **options).fit(small) == (0, {})
        assert same_bits(weights(module), before)

    def test_every_fit_starts_fresh(self) -> None:
        module = SmallModule()
        start = weights(module)
        trainer = client_trainer(module, local_epochs=2)
        first = trainer.fit(loader())
        after = weights(module)
        module.load_state_dict(start)
        assert trainer.fit(loader()) == first
        assert same_bits(weights(module), after)
        assert all(parameter.grad is None for parameter in module.parameters())

    def test_metrics_are_those_of_the_last_epoch(self) -> None:
        class LogsEpoch(SmallModule):
            def on_train_epoch_end(self) -> None:
                self.log("epoch", float(self.current_epoch))

        steps, metrics = client_trainer(LogsEpoch(), local_epochs=3).fit(loader())
        assert steps == 12
        assert metrics["epoch"] == 2.0
        assert metrics["train_loss"] > 0

    def test_the_clients_term_comes_once_a_step(self) -> None:
        calls = []
        client_trainer(SmallModule(), local_epochs=2, accumulate_grad_batches=3).fit(
            loader(), after_backward=lambda: calls.append(1)
        )
        assert len(calls) == 4


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


class TestSchedulers:
    @pytest.mark.parametrize("every", [1, 2])
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_step_as_lightning_steps_them(self, name: str, every: int) -> None:
        assert_alike(Scheduled(name), local_epochs=3, accumulate_grad_batches=every)

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_the_rounds_factor_scales_every_rate(self, name: str) -> None:
        rates = {}
        for factor in (1.0, 0.25):
            module = Scheduled(name)
            # Without training the plateau's decisions are the same at any rate.
            module.net.requires_grad_("plateau" not in name)
            module.net[0].requires_grad_(True)
            client_trainer(module, local_epochs=3).fit(loader(), factor)
            rates[factor] = module.rates
        assert len(set(rates[1.0])) > 1, "the scheduler did nothing"
        assert rates[0.25] == pytest.approx([0.25 * rate for rate in rates[1.0]], rel=1e-9)

    def test_monitor_that_is_not_logged(self) -> None:
        class Unlogged(SmallModule):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

        with pytest.raises(ConfigurationError, match=r"monitors 'val_loss'.*logged: train_loss"):
            client_trainer(Unlogged()).fit(loader())


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


class LogsEverything(SmallModule):
    """Uses `self.log` in all its forms."""

    def __init__(self) -> None:
        super().__init__()
        self.collection = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(NUM_CLASSES),
                "f1": MulticlassF1Score(NUM_CLASSES),
                "micro": MulticlassAccuracy(NUM_CLASSES, average="micro"),
            },
            prefix="all_",
        )
        self.by_hand = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.seen: list[Tensor] = []

    def log_all(self, batch: Any) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        loss = losses.mean()
        self.log("plain", loss, on_step=False, on_epoch=True)
        self.log("both", loss, on_step=True, on_epoch=True)
        self.log("sum", losses.sum(), reduce_fx="sum", on_step=False, on_epoch=True)
        self.log("max", losses.max(), reduce_fx=torch.max, on_step=False, on_epoch=True)
        self.log("min", losses.min(), reduce_fx="min", on_step=False, on_epoch=True)
        self.log("own_weight", loss, batch_size=3, on_step=False, on_epoch=True)
        self.log("integer", len(labels), on_step=False, on_epoch=True)
        self.log("one_element", loss.reshape(1), on_step=False, on_epoch=True, prog_bar=True, logger=False)
        self.log("options", loss, on_step=False, on_epoch=True, sync_dist=True, rank_zero_only=False, enable_graph=True)
        self.log_dict({"in_dict": loss, "in_dict_2": 2 * loss}, on_step=False, on_epoch=True)
        self.collection.update(logits, labels)
        self.log_dict(self.collection, on_step=False, on_epoch=True)
        self.accuracy(logits, labels)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("accuracy_too", self.accuracy, on_step=False, on_epoch=True, metric_attribute="accuracy")
        self.by_hand.update(logits, labels)
        self.seen.append(loss.detach())
        return loss

    def end(self) -> None:
        self.log("by_hand", self.by_hand.compute())
        self.by_hand.reset()
        self.log("worst_batch", torch.stack(self.seen).max())
        self.seen.clear()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.log_all(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log_all(batch)

    def on_train_epoch_end(self) -> None:
        self.end()

    def on_validation_epoch_end(self) -> None:
        self.end()


class TestLog:
    def test_validation_logs_what_lightning_reports(self) -> None:
        reference = lightning_validate(LogsEverything(), loader())
        got = client_trainer(LogsEverything()).evaluate([loader()])
        # Lightning's callback_metrics also hold the last step's value, which is no result of an epoch.
        wanted = {name: value for name, value in reference.items() if not name.endswith("_step")}
        assert got == pytest.approx(wanted, rel=1e-6)

    def test_training_logs_what_lightning_reports(self) -> None:
        reference = lightning_fit(LogsEverything(), loader(), max_epochs=2).callback_metrics
        _, got = client_trainer(LogsEverything(), local_epochs=2).fit(loader())
        wanted = {name: float(value) for name, value in reference.items() if not name.endswith("_step")}
        assert got == pytest.approx(wanted, rel=1e-6)

    def test_several_loaders_get_lightnings_suffix(self) -> None:
        class Shared(SmallModule):
            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
                loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
                self.log("val_loss", loss)
                self.log(f"alone_{dataloader_idx}", loss, add_dataloader_idx=False)

        loaders = [loader(20), loader(11, seed=8), loader(9, seed=9)]
        reference, got = lightning_validate(Shared(), loaders), client_trainer(Shared()).evaluate(loaders)
        assert got == pytest.approx(reference, rel=1e-6)
        assert {"val_loss/dataloader_idx_2", "alone_1"} <= got.keys()

    def test_a_step_value_is_averaged_over_the_epoch(self) -> None:
        """Lightning keeps the last batch's; a client reports what its whole fit was like."""
        losses = []

        class Notes(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = super().training_step(batch, batch_idx)
                losses.append((loss.item(), len(batch[0])))
                return loss

        _, metrics = client_trainer(Notes()).fit(loader())
        mean = sum(loss * size for loss, size in losses) / sum(size for _, size in losses)
        assert metrics == {"train_loss": pytest.approx(mean)}

    def test_callback_metrics_hold_the_newest_value_within_an_epoch(self) -> None:
        class Reads(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = super().training_step(batch, batch_idx)
                assert self.trainer.callback_metrics["train_loss"] == loss.detach()
                return loss

        client_trainer(Reads()).fit(loader())

    @pytest.mark.parametrize("value", [torch.ones(3), "text"])
    def test_refuses_what_is_no_number(self, value: Any) -> None:
        class Wrong(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                self.log("oops", value)
                return super().training_step(batch, batch_idx)

        with pytest.raises(ConfigurationError, match="oops"):
            client_trainer(Wrong()).fit(loader())

    def test_batches_without_a_size_need_none_where_nothing_is_averaged(self) -> None:
        class Opaque(SmallModule):
            def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                return _Box(batch)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                inputs, labels = batch.content
                self.log("seen", len(inputs), reduce_fx="sum")
                loss = nn.functional.cross_entropy(self(inputs), labels)
                self.log("loss", loss, batch_size=len(inputs))
                return loss

        assert client_trainer(Opaque()).fit(loader())[1]["seen"] == 27.0

    def test_nested_modules_log_too(self) -> None:
        class Outer(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.inner = SmallModule()

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return self.inner.training_step(batch, batch_idx)

        assert "train_loss" in client_trainer(Outer()).fit(loader())[1]


class _Box:
    def __init__(self, content: Any) -> None:
        self.content = content


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
                seen[-1][f"{batch_idx} logger"] = (self.logger, list(self.loggers))
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
        assert (trainer.max_steps, trainer.estimated_stepping_batches, trainer.max_epochs) == (7, 7, None)

    def test_an_unknown_one_says_what_there_is(self) -> None:
        trainer = client_trainer(SmallModule())
        with pytest.raises(AttributeError, match=r"no 'datamodule'; it has .*current_epoch.*max_epochs"):
            _ = trainer.datamodule
        assert not hasattr(trainer, "__array__")

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


class TestOptimizers:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda module: None, "returned None"),
            (
                lambda module: [torch.optim.SGD(module.parameters(), 0.1), torch.optim.SGD(module.parameters(), 0.1)],
                "returned 2 optimizers",
            ),
            (lambda module: "adam", "configure_optimizers: "),
            (lambda module: {"lr_scheduler": None}, "configure_optimizers"),
        ],
    )
    def test_refuses_all_but_one(self, answer: Callable[[nn.Module], Any], message: str) -> None:
        class Wrong(SmallModule):
            def configure_optimizers(self) -> Any:
                return answer(self)

        with pytest.raises(ConfigurationError, match=message):
            client_trainer(Wrong()).fit(loader())

    def test_refuses_manual_optimization(self) -> None:
        module = SmallModule()
        module.automatic_optimization = False
        with pytest.raises(ConfigurationError, match="SmallModule: manual optimization"):
            client_trainer(module).fit(loader())

    @pytest.mark.parametrize("form", ["bare", "list", "pair", "dict"])
    def test_takes_every_form(self, form: str) -> None:
        class Form(SmallModule):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.Adam(self.parameters(), 0.01)
                scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
                forms = {
                    "bare": optimizer,
                    "list": [optimizer],
                    "pair": ([optimizer], [scheduler]),
                    "dict": {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}},
                }
                return forms[form]

        assert_alike(Form(), local_epochs=2)


class TestEvaluate:
    def test_changes_neither_modes_nor_weights_nor_gradients(self) -> None:
        module = SmallModule()
        module.net[0].eval()
        before = weights(module)
        client_trainer(module).evaluate([loader()])
        assert module.training
        assert not module.net[0].training
        assert same_bits(weights(module), before)

    def test_runs_in_evaluation_mode_without_gradients(self) -> None:
        class Checks(SmallModule):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                assert not self.training
                assert not self.net.training
                assert self.trainer.validating
                assert not self.trainer.training
                assert not torch.is_grad_enabled()
                super().validation_step(batch, batch_idx)

        trainer = client_trainer(Checks())
        assert list(trainer.evaluate([loader()])) == ["val_loss", "val_accuracy"]
        assert not trainer.validating

    def test_is_the_same_twice(self) -> None:
        trainer = client_trainer(SmallModule())
        assert trainer.evaluate([loader()]) == trainer.evaluate([loader()])

    def test_nothing_logged(self) -> None:
        class Silent(SmallModule):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self(batch[0])

        assert client_trainer(Silent()).evaluate([loader()]) == {}


def test_autocast_covers_steps_and_evaluation() -> None:
    kinds = []

    class Notes(SmallModule):
        def forward(self, inputs: Tensor) -> Tensor:
            output = super().forward(inputs)
            kinds.append(output.dtype)
            return output

    trainer = ClientTrainer(Notes(), FitOptions(), CPU, lambda: torch.autocast("cpu", torch.bfloat16))
    trainer.fit(loader())
    trainer.evaluate([loader()])
    assert set(kinds) == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.lightning_module.parameters()} == {torch.float32}


def test_batches_of_other_shapes() -> None:
    class Dicts(SmallModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step((batch["inputs"], batch["labels"]), batch_idx)

    data = examples(20, 1)
    rows = [{"inputs": x, "labels": y} for x, y in data]
    steps, metrics = client_trainer(Dicts()).fit(DataLoader(rows, 8))
    plain = client_trainer(SmallModule()).fit(DataLoader(TensorDataset(*data.tensors), 8))
    assert (steps, metrics) == plain
