"""What is refused before the first round, and what one batch tells."""

import copy
from contextlib import nullcontext
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from torchmetrics.classification import MulticlassAccuracy

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.checks import (
    Probe,
    probe,
    resolve_monitor,
    validation_loaders,
)
from fedhq_lightning.types import FitOptions

from ..small_federation import NUM_FEATURES, SmallData, SmallModule, examples, same_bits


def probed(module: L.LightningModule, data: Any = None, **options: Any) -> Probe:
    data = SmallData() if data is None else data
    return probe(module, data, data.client_ids[0], FitOptions(**options), {"net.0": True, "net.2": True}, nullcontext)


def names(train: list[str], validation: list[str]) -> Probe:
    return Probe([], 8, train, validation, None)


def test_one_batch_tells_what_is_logged_and_what_it_costs() -> None:
    found = probed(SmallModule())
    assert found.batch_size == 8
    assert found.train_names == ["train_loss"]
    assert found.validation_names == ["val_loss", "val_accuracy"]
    assert {cost.name for cost in found.costs if cost.quantizable} == {"net.0", "net.2"}
    first = next(cost for cost in found.costs if cost.name == "net.0")
    assert first.forward_flops == 2 * 8 * NUM_FEATURES * 16
    assert found.example_args is not None
    assert found.example_args[0].shape == (32, NUM_FEATURES)


def test_the_module_is_left_as_it_was() -> None:
    module = SmallModule()
    before = copy.deepcopy(module.state_dict())
    probed(module)
    assert same_bits(module.state_dict(), before)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module._trainer is None


def test_without_validation_step() -> None:
    class TrainsOnly(SmallModule):
        validation_step = L.LightningModule.validation_step

    found = probed(TrainsOnly())
    assert found.validation_names == []
    assert found.example_args is None
    assert validation_loaders(TrainsOnly(), SmallData()) == []


def test_forward_that_is_never_called() -> None:
    class Inside(SmallModule):
        def forward(self, inputs: Tensor) -> Tensor:
            raise AssertionError

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", self.net(batch[0]).mean())

    assert probed(Inside()).example_args is None


def test_forward_called_by_keyword_gives_no_example() -> None:
    class ByName(SmallModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", self(inputs=batch[0]).mean())

    class FirstByName(ByName):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self(batch[0][:5])

    assert probed(ByName()).example_args is None
    found = probed(FirstByName()).example_args
    assert found is not None
    assert found[0].shape == (5, NUM_FEATURES)


class TestBatchNorm:
    """Which modules cannot train on one example."""

    class Normed(SmallModule):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.net = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
            self.net(torch.zeros(2, NUM_FEATURES))

    def test_over_examples_alone(self) -> None:
        assert probed(self.Normed(nn.BatchNorm1d(NUM_FEATURES))).batch_norm == "net.0"
        wide = nn.Sequential(nn.Unflatten(1, (NUM_FEATURES, 1, 1)), nn.BatchNorm2d(NUM_FEATURES))
        assert probed(self.Normed(wide)).batch_norm == "net.0.1"

    def test_over_positions_too(self) -> None:
        assert probed(self.Normed(nn.Unflatten(1, (3, 4)), nn.BatchNorm1d(3))).batch_norm is None

    def test_frozen_or_none(self) -> None:
        module = self.Normed(nn.BatchNorm1d(NUM_FEATURES).eval())
        assert probed(module).batch_norm is None
        assert probed(SmallModule()).batch_norm is None

    def test_batches_of_one(self) -> None:
        with pytest.raises(ConfigurationError, match=r"net\.0 .*BatchNorm1d.* one example; .* larger batch_size"):
            probed(self.Normed(nn.BatchNorm1d(NUM_FEATURES)), SmallData(batch_size=1))


def test_frozen_parameters() -> None:
    class Thaws(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.requires_grad_(False)

        def configure_optimizers(self) -> Any:
            self.net[2].requires_grad_(True)
            return torch.optim.SGD(self.net[2].parameters(), 0.1)

    assert probed(SmallModule()).frozen == frozenset()
    assert probed(Thaws()).frozen == {"net.0.weight", "net.0.bias"}


def test_a_loader_that_drops_its_last_batch() -> None:
    class Drops(SmallData):
        def train_dataloader(self, client_id: Any) -> Any:
            return DataLoader(self.dataset(client_id), 8, drop_last=True)

    assert probed(SmallModule(), Drops()).drop_last
    assert not probed(SmallModule()).drop_last


class _Loaders(SmallData):
    def __init__(self, loaders: Any) -> None:
        super().__init__()
        self.loaders = loaders

    def val_dataloader(self) -> Any:
        return self.loaders


def test_several_validation_loaders() -> None:
    class Two(SmallModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("loss", self(batch[0]).mean())

    loaders = [DataLoader(examples(9, 1), 4), DataLoader(examples(5, 2), 4)]
    assert probed(Two(), _Loaders(loaders)).validation_names == ["loss/dataloader_idx_0", "loss/dataloader_idx_1"]
    assert probed(Two(), _Loaders({"a": loaders[0], "b": loaders[1]})).validation_names == [
        "loss/dataloader_idx_0",
        "loss/dataloader_idx_1",
    ]


def test_no_held_out_data() -> None:
    for nothing in (None, []):
        assert probed(SmallModule(), _Loaders(nothing)).validation_names == []


def test_a_held_out_loader_without_batches() -> None:
    empty = DataLoader(examples(3, 1), 8, drop_last=True)
    with pytest.raises(ConfigurationError, match="val_dataloader gives no batch"):
        probed(SmallModule(), _Loaders(empty))


class Opaque:
    """A batch that does not tell its size."""

    def __init__(self, rows: Any) -> None:
        self.inputs = torch.stack([row[0] for row in rows])
        self.labels = torch.stack([row[1] for row in rows])


class OpaqueData(SmallData):
    def train_dataloader(self, client_id: Any) -> Any:
        return DataLoader(self.dataset(client_id), self.batch_size, collate_fn=Opaque)


def test_a_batch_that_does_not_tell_its_size() -> None:
    class Takes(SmallModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self(batch.inputs), batch.labels)

    assert probed(Takes(), OpaqueData((20,))).batch_size == 8


def test_a_batch_that_misleads_about_its_size() -> None:
    """The clock counts a client's batches by it; two crops of each picture are no two examples."""

    class TwoCrops(SmallData):
        def train_dataloader(self, client_id: Any) -> Any:
            def collate(rows: list[Any]) -> Any:
                inputs, labels = default_collate(rows)
                return torch.cat([inputs, inputs]), torch.cat([labels, labels])

            return DataLoader(self.dataset(client_id), self.batch_size, collate_fn=collate)

    assert probed(SmallModule(), TwoCrops((20,))).batch_size == 8


def test_manual_optimization() -> None:
    module = SmallModule()
    module.automatic_optimization = False
    with pytest.raises(ConfigurationError, match="manual optimization"):
        probed(module)


def test_several_optimizers() -> None:
    class Several(SmallModule):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.SGD(self.net[2].parameters(), 0.1)]

    with pytest.raises(ConfigurationError, match="returned 2 optimizers"):
        probed(Several())


def test_a_scheduler_that_monitors_what_is_not_logged() -> None:
    class Unlogged(SmallModule):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    class UnloggedAnywhere(Unlogged):
        validation_step = L.LightningModule.validation_step

    with pytest.raises(ConfigurationError, match=r"monitors 'val_loss', which .* it logs train_loss"):
        probed(UnloggedAnywhere())
    with pytest.warns(UserWarning, match=r"monitors 'val_loss', which validation logs.*trainer\.round_lr"):
        probed(Unlogged())


def test_a_scheduler_may_monitor_what_is_logged_at_the_end_of_an_epoch() -> None:
    class AtTheEnd(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.train_accuracy = MulticlassAccuracy(3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.train_accuracy.update(self(batch[0]), batch[1])
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            self.log("train_accuracy", self.train_accuracy.compute())
            self.train_accuracy.reset()

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max")
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_accuracy"}}

    probed(AtTheEnd())


def test_every_hook_before_and_after_the_step_is_called() -> None:
    class Prepares(SmallModule):
        def on_fit_start(self) -> None:
            self.started = True

        def on_train_epoch_start(self) -> None:
            assert self.started
            self.losses: list[Tensor] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.losses.append(loss.detach())
            return loss

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.last = outputs["loss"]

        def on_train_epoch_end(self) -> None:
            self.log("worst", torch.stack([*self.losses, self.last]).max())

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            assert self.trainer.estimated_stepping_batches == 9  # 20 examples in batches of 8, three times
            return optimizer

    assert probed(Prepares(), local_epochs=3).train_names == ["train_loss", "worst"]


def test_costs_are_of_one_forward_pass_however_long_a_fit_is() -> None:
    one, many = probed(SmallModule()), probed(SmallModule(), local_epochs=None, local_steps=50)
    assert one.costs == many.costs


def test_a_loss_without_gradient_is_told_before_round_1() -> None:
    class NoGradient(SmallModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx).detach()

    with pytest.raises(RuntimeError, match="does not require grad"):
        probed(NoGradient())


def test_a_training_step_without_loss() -> None:
    class NoLoss(SmallModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    with pytest.raises(ConfigurationError, match="None for the first batch"):
        probed(NoLoss())


def test_monitor() -> None:
    both = names(["train_loss"], ["val_loss", "val_accuracy"])
    assert resolve_monitor(None, both) == "val_loss"
    assert resolve_monitor("val_accuracy", both) == "val_accuracy"
    assert resolve_monitor(None, names(["train_loss"], [])) == "train_loss"
    assert resolve_monitor(None, names([], [])) is None
    with pytest.raises(
        ConfigurationError,
        match=r"'val_acuracy': nobody logs it; logged: val_loss, val_accuracy; did you mean 'val_accuracy'\?",
    ):
        resolve_monitor("val_acuracy", both)
    with pytest.raises(
        ConfigurationError, match=r"'train_loss': logged in training only.*validation logs val_loss, val_accuracy"
    ):
        resolve_monitor("train_loss", both)
    with pytest.raises(ConfigurationError, match="logged: nothing"):
        resolve_monitor("x", names([], []))
