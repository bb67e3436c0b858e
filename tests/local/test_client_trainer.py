"""A local fit trains an unmodified module bitwise as Lightning's own Trainer does."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.types import FitOptions

from ..federated.client_fits import CPU, assert_alike, client_trainer, loader, weights
from ..small_federation import NUM_FEATURES, SmallModule, examples, same_bits


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

    def test_training_step_may_be_another_one_from_some_step_on(self) -> None:
        class Changes(SmallModule):
            def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
                if batch_idx == 2:
                    self.training_step = self.without_index

            def without_index(self, batch: Any) -> Any:
                return 3 * nn.functional.cross_entropy(self(batch[0]), batch[1])

        assert_alike(Changes(), local_epochs=2)

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
        trainer = client_trainer(module, **options)
        assert trainer.fit(small) == (0, {})
        assert not trainer.training
        assert same_bits(weights(module), before)

    def test_without_batches_nothing_is_configured(self) -> None:
        class OneCycle(SmallModule):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                steps = int(self.trainer.estimated_stepping_batches)
                return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)]

        small = DataLoader(examples(3, 1), 8, drop_last=True)
        assert client_trainer(OneCycle()).fit(small) == (0, {})

    @pytest.mark.parametrize("steps", [{"local_epochs": 3}, {"local_epochs": None, "local_steps": 3}])
    def test_max_epochs_is_what_lightning_says(self, steps: dict[str, Any]) -> None:
        assert client_trainer(SmallModule(), **steps).max_epochs == (steps["local_epochs"] or -1)

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

    @pytest.mark.parametrize("every", [1, 3])
    def test_what_follows_a_step_comes_after_it(self, every: int) -> None:
        module = SmallModule()
        seen: list[Tensor] = []
        before = module.net[2].bias.detach().clone()
        num_steps, _ = client_trainer(module, accumulate_grad_batches=every).fit(
            loader(), after_step=lambda: seen.append(module.net[2].bias.detach().clone())
        )
        assert len(seen) == num_steps
        assert not any(torch.equal(one, other) for one, other in pairwise([before, *seen]))

    def test_the_clients_term_comes_once_a_step(self) -> None:
        calls = []
        client_trainer(SmallModule(), local_epochs=2, accumulate_grad_batches=3).fit(loader(), before_step=calls.append)
        assert len(calls) == 4
        assert all(isinstance(each, torch.optim.SGD) for each in calls)


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
