"""Hooks of a data module: called as Lightning calls them, wherever its batches go."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner
from torch import Tensor
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import FederatedDataModule, PartitionedDataModule
from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import ClientId, Plan

from ..beside_lightning import lightning_fit, lightning_trainer, without_advice
from ..small_federation import SmallModule, examples, trainer
from ..trainer.runs import records


class Hooks(L.LightningDataModule):
    """Inputs that are stored in thousands, and what each hook saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        self.seen.append(("before", self.trainer.training, dataloader_idx))
        inputs, labels = batch
        return inputs / 1000, labels

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.seen.append(("transfer", device.type, dataloader_idx))
        return [each.to(device) for each in batch]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        inputs, labels = batch
        return (inputs + 0.5 if self.trainer.training else inputs), labels  # augmentation

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.seen.append(("setup", stage, self.trainer.world_size))

    def teardown(self, stage: str) -> None:
        self.seen.append(("teardown", stage))

    def on_exception(self, exception: BaseException) -> None:
        self.seen.append(("exception", type(exception).__name__))


def thousands(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    return [(inputs * 1000, label) for inputs, label in examples(count, seed)]


class Whole(Hooks):
    """One batch of training data, so that their order does not count."""

    def train_dataloader(self) -> Any:
        return DataLoader(thousands(24, 1), batch_size=24)

    def val_dataloader(self) -> Any:
        return DataLoader(thousands(20, 2), batch_size=20)

    test_dataloader = predict_dataloader = val_dataloader


class OneClient(Hooks, FederatedDataModule):
    client_ids = ("a",)

    def train_dataloader(self, client_id: ClientId) -> Any:
        return Whole().train_dataloader()

    def val_dataloader(self) -> Any:
        return Whole().val_dataloader()


def partitioned() -> PartitionedDataModule:
    return PartitionedDataModule(Whole(), IidPartitioner(1))


@pytest.mark.usefixtures("no_program")
@pytest.mark.parametrize("make", [OneClient, partitioned])
def test_one_client_learns_what_lightning_learns(make: Callable[[], FederatedDataModule]) -> None:
    whole = Whole()
    lightnings = lightning_fit(SmallModule(), whole)
    data, there = make(), trainer(max_rounds=1, uplink="weights")
    there.fit(SmallModule(), data)
    last = records(there)[-1].metrics
    assert last["train/train_loss"] == pytest.approx(float(lightnings.callback_metrics["train_loss"]), rel=1e-5)
    assert last["fp/val_loss"] == pytest.approx(float(lightnings.callback_metrics["val_loss"]), rel=1e-5)
    inner = unwrapped(data)
    assert isinstance(inner, Hooks)
    # The deployed model is tested at the end.
    of_test = {("setup", "test", 1)} if make is partitioned else set()
    assert set(inner.seen) == set(whole.seen) | of_test
    assert (inner.seen[0], inner.seen[-1]) == (("setup", "fit", 1), ("teardown", "fit"))
    assert inner.trainer is None


def test_validate_test_and_predict_go_through_them() -> None:
    data, module, there, lightnings = partitioned(), SmallModule(), trainer(), lightning_trainer()
    module.predict_step = lambda batch, batch_idx: module(batch[0])  # type: ignore[method-assign]
    with without_advice():
        [validated], [tested] = (run(module, Whole(), verbose=False) for run in (lightnings.validate, lightnings.test))
        [wanted] = lightnings.predict(module, Whole())
    assert there.validate(module, data)["fp/val_loss"] == pytest.approx(validated["val_loss"], rel=1e-5)
    assert there.test(module, data)["fp/test_loss"] == pytest.approx(tested["test_loss"], rel=1e-5)
    [predicted] = there.predict(module, data)
    assert torch.equal(predicted, wanted)
    inner = unwrapped(data)
    assert isinstance(inner, Hooks)
    stages = [each[:2] for each in inner.seen if each[0] in ("setup", "teardown")]
    assert stages == [(hook, stage) for stage in ("validate", "test", "predict") for hook in ("setup", "teardown")]


@pytest.mark.usefixtures("no_program")
def test_after_teardown_data_are_set_up_and_dealt_anew() -> None:
    class Cleans(Whole):
        def setup(self, stage: str) -> None:
            self.rows = thousands(24, 1)

        def train_dataloader(self) -> Any:
            return DataLoader(self.rows, batch_size=24)

        def test_dataloader(self) -> Any:
            return DataLoader(self.rows, batch_size=24)

        def teardown(self, stage: str) -> None:
            del self.rows

    data = PartitionedDataModule(Cleans(), IidPartitioner(2))
    for _ in range(2):
        there = trainer(max_rounds=1)
        there.fit(SmallModule(), data)
        assert sum(client.num_examples for client in records(there)[-1].clients) == 24
        assert there.summary["test_metrics"] == there.test()
    assert [data.num_examples(client_id) for client_id in data.client_ids] == [12, 12]


@pytest.mark.usefixtures("no_program")
def test_of_two_the_data_modules_is_called() -> None:
    class Module(SmallModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            raise AssertionError("not called")

    with pytest.warns(UserWarning, match="on_after_batch_transfer is overridden in both Module and OneClient"):
        trainer(max_rounds=1).fit(Module(), OneClient())


@pytest.mark.usefixtures("no_program")
def test_the_calibration_of_the_allocator_goes_through_them() -> None:
    """A forward pass on inputs in thousands is told by the scale of the activations."""
    largest = []

    class Module(SmallModule):
        def forward(self, inputs: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                largest.append(float(inputs.abs().max()))
            return super().forward(inputs)

    trainer(max_rounds=1, scheme="w4a8", callbacks=FixedAllocator("qat")).fit(Module(), OneClient())
    assert 1 < max(largest) < 10


@pytest.mark.usefixtures("no_program")
def test_told_of_an_exception() -> None:
    class Late(OneClient):
        breaks = False

        def train_dataloader(self, client_id: ClientId) -> Any:
            if self.breaks:
                raise OSError("the disk is gone")
            return super().train_dataloader(client_id)

    class Breaks(RoundCallback):
        def on_round_start(self, trainer: FederatedTrainer, round_number: int, plan: Plan) -> None:
            data.breaks = round_number == 2

    data = Late()
    with pytest.raises(OSError, match="the disk is gone") as raised:
        trainer(callbacks=Breaks(), on_client_error="raise").fit(SmallModule(), data)
    assert data.seen[-1] == ("exception", "OSError")
    assert raised.value.__notes__ == ["while client a trained in fp, in round 2"]
