"""What is put together before the first round."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.setup import Job, set_up
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.types import ClientId

from ..small_federation import SmallData, SmallModule, examples, same_bits, trainer

pytestmark = pytest.mark.usefixtures("no_report")


def job(module: Any = None, data: Any = None, **settings: Any) -> Job:
    asked = trainer(**settings)
    return set_up(asked.settings, asked.fabric, module or SmallModule(), data or SmallData())


def test_numpys_ids_and_counts() -> None:
    class Numpy(SmallData):
        @property
        def client_ids(self) -> Sequence[Any]:
            return np.arange(4)  # type: ignore[return-value]  # what users give

        def num_examples(self, client_id: ClientId) -> Any:
            return np.int64(self.sizes[client_id])

    cohort = job(data=Numpy()).sampler.cohort(1)
    assert cohort == [0, 1, 2, 3]
    assert {type(each) for each in cohort} == {int}


def test_the_clock_does_not_depend_on_who_comes_first() -> None:
    sizes: dict[ClientId, int] = {"small": 3, "large": 640, "middle": 41}
    clocks = [job(data=SmallData(dict(order))).clock for order in (sizes.items(), reversed(sizes.items()))]
    for client_id in sizes:
        assert clocks[0].seconds(client_id, "fp") == clocks[1].seconds(client_id, "fp")


def test_the_clock_knows_what_loaders_drop() -> None:
    class Drops(SmallData):
        def train_dataloader(self, client_id: ClientId) -> Any:
            return DataLoader(self.dataset(client_id), 8, drop_last=True)

    clock = job(data=Drops((7, 16, 23))).clock
    assert clock.time(0, "fp").compute_seconds == 0
    assert clock.time(1, "fp") == clock.time(2, "fp")


def test_frozen_parameters_stay_the_servers() -> None:
    module = SmallModule()
    module.net[0].requires_grad_(False)
    there = job(module)
    assert there.parameter_names == {"net.2.weight", "net.2.bias"}
    state = there.initial_state()
    assert there.link.receive(there.link.up(state, state, 1, 0), 1, 0).keys() == there.parameter_names


@pytest.mark.parametrize("allocation", ["fp", {0: "fp", 1: "fp", 2: "fp", 3: "fp"}])
def test_an_allocator_that_quantizes_nobody_needs_no_scheme(allocation: Any) -> None:
    assert set(job(callbacks=FixedAllocator(allocation)).allocator.propose(1, range(4)).modes.values()) == {"fp"}


@pytest.mark.parametrize("allocation", ["ptq", 0.0, {0: "fp", 1: "qat", 2: "fp", 3: "fp"}])
def test_an_allocator_that_quantizes_anybody_needs_one(allocation: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.scheme is not set"):
        job(callbacks=FixedAllocator(allocation))


def test_a_batch_of_one_for_batch_norm_is_refused() -> None:
    module = SmallModule()
    module.net.insert(1, nn.BatchNorm1d(16))
    job(module, SmallData((16, 10)))
    with pytest.raises(ConfigurationError, match=r"client 1 holds 9 examples in batches of 8: .*net\.1 \(BatchNorm\)"):
        job(module, SmallData((16, 9)))


def test_a_million_clients_are_set_up_in_seconds() -> None:
    class Million(SmallData):
        @property
        def client_ids(self) -> Sequence[ClientId]:
            return range(1_000_000)

        def num_examples(self, client_id: ClientId) -> int:
            return 20

        def train_dataloader(self, client_id: ClientId) -> Any:
            return DataLoader(examples(20, 1), 8)

        def label_counts(self, client_id: ClientId) -> Any:
            return None

    started = time.process_time()
    there = job(data=Million(), clients_per_round=5)
    assert len(there.sampler.cohort(1)) == 5
    assert isinstance(there.sampler.with_data(), range)
    assert time.process_time() - started < 10


def test_a_module_that_asks_for_the_data_module() -> None:
    class Asks(SmallModule):
        def setup(self, stage: str) -> None:
            self.asked = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's Trainer has one

    data = SmallData()
    assert job(Asks(), data).template.asked is data


def test_a_client_without_a_batch_needs_no_schedule_and_moves_nothing(tmp_path: Path) -> None:
    class Drops(SmallData):
        def train_dataloader(self, client_id: ClientId) -> Any:
            return DataLoader(self.dataset(client_id), 8, shuffle=True, drop_last=True)

    class OneCycle(SmallModule):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            steps = int(self.trainer.estimated_stepping_batches)
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)]

    module = OneCycle()
    there = trainer(max_rounds=1, default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="1 of 2 clients took no step"):
        there.fit(module, Drops((5, 16)))
    clients = RunDirectory(there.run_dir).read_rounds()[1].clients
    assert [(each.status, each.num_steps) for each in clients] == [("idle", 0), ("ok", 2)]
    alone = OneCycle()
    trainer(max_rounds=1, default_root_dir=tmp_path).fit(alone, _Only(Drops((5, 16)), 1))
    assert same_bits(module.state_dict(), alone.state_dict())


class _Only(SmallData):
    """One client of other data."""

    def __init__(self, data: SmallData, client_id: ClientId) -> None:
        super().__init__({client_id: data.sizes[client_id]})
        self.train_dataloader = data.train_dataloader  # type: ignore[method-assign]


def test_parameters_that_are_not_finite_are_refused_by_name() -> None:
    module = SmallModule()
    name, parameter = list(module.named_parameters())[-1]
    with torch.no_grad():
        parameter.fill_(torch.nan)
    with pytest.raises(ConfigurationError, match=f"{name} hold values that are not finite"):
        job(module)
