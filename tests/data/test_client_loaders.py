"""Clients' loaders give what the wrapped loader gives: the same examples, in the same kind of order, made alike."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from fedhq_lightning import FederatedTrainer, PartitionedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.seeds import generators_kept

ROWS = TensorDataset(torch.arange(40), torch.arange(40) % 2)


class Given(L.LightningDataModule):
    """Gives one training loader; held-out batches where it has some."""

    def __init__(self, loader: Any, held_out: Any = None) -> None:
        super().__init__()
        self.loader, self.held_out = loader, held_out

    def train_dataloader(self) -> Any:
        return self.loader

    def val_dataloader(self) -> Any:
        return self.held_out


def dealt(loader: Any, clients: int = 2) -> PartitionedDataModule:
    return PartitionedDataModule(Given(loader), IidPartitioner(clients))


def rows_of(module: PartitionedDataModule, client_id: int) -> list[int]:
    return [row for batch in module.train_dataloader(client_id) for row in batch[0].tolist()]


def all_rows(module: PartitionedDataModule) -> list[int]:
    return sorted(row for client_id in module.client_ids for row in rows_of(module, client_id))


EVEN = list(range(0, 40, 2))


@pytest.mark.parametrize(
    ("loader", "rows"),
    [
        (DataLoader(ROWS, 4), range(40)),
        (DataLoader(ROWS, 4, shuffle=True), range(40)),
        (DataLoader(ROWS, 4, sampler=SubsetRandomSampler(EVEN)), EVEN),
        (DataLoader(ROWS, 4, sampler=SubsetRandomSampler(torch.tensor(EVEN))), EVEN),
        (DataLoader(ROWS, 4, sampler=SubsetRandomSampler([torch.tensor(row) for row in EVEN])), EVEN),
        (DataLoader(ROWS, 4, sampler=SubsetRandomSampler(np.array(EVEN, np.uint8))), EVEN),
        (DataLoader(ROWS, 4, sampler=SubsetRandomSampler([7, 7, 7, -1])), [7, 7, 7, 39]),
        (DataLoader(Subset(ROWS, EVEN), 4, sampler=SubsetRandomSampler([0, 3, 19])), [0, 6, 38]),
        (DataLoader(ROWS, 4, sampler=SequentialSampler(range(10))), range(10)),
        (DataLoader(ROWS, 4, sampler=RandomSampler(range(10))), range(10)),
    ],
)
def test_what_the_loader_draws_is_dealt_and_counted(loader: DataLoader[Any], rows: Any) -> None:
    module = dealt(loader)
    assert all_rows(module) == list(rows) == sorted(torch.cat([batch[0] for batch in loader]).tolist())
    counts = sum(module.label_counts(client_id) for client_id in module.client_ids)
    assert counts.tolist() == torch.bincount(torch.tensor(rows) % 2, minlength=len(counts)).tolist()


def test_label_function_sees_only_what_the_loader_draws() -> None:
    seen: list[int] = []
    loader = DataLoader(ROWS, 4, sampler=SubsetRandomSampler(EVEN))
    module = PartitionedDataModule(
        Given(loader), IidPartitioner(2), label_fn=lambda example: seen.append(int(example[0])) or int(example[0]) % 4
    )
    assert module.label_counts(0).sum() == 10
    assert sorted(seen) == EVEN


class NoPositions(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(40))

    def __len__(self) -> int:
        return 40


class Reversed(SubsetRandomSampler):
    def __iter__(self) -> Iterator[int]:
        return reversed(self.indices)


class Scaled(DataLoader):
    def __iter__(self) -> Any:
        return ((rows / 40, labels) for rows, labels in super().__iter__())


class Endless(DataLoader):
    def __len__(self) -> int:
        return 1000


WEIGHTED = WeightedRandomSampler(torch.ones(40), 40)


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (
            DataLoader(ROWS, 4, sampler=WEIGHTED),
            "draws by WeightedRandomSampler; .* put the weights into the loss, or ",
        ),
        (DataLoader(ROWS, 4, sampler=DistributedSampler(ROWS, 2, 0)), "draws by DistributedSampler; .*leave it out"),
        (DataLoader(ROWS, 4, sampler=RandomSampler(ROWS, replacement=True)), "RandomSampler; .*leave replacement and"),
        (DataLoader(ROWS, 4, sampler=RandomSampler(ROWS, num_samples=9)), "RandomSampler; .*local_steps"),
        (DataLoader(ROWS, 4, sampler=NoPositions()), "NoPositions; .* FederatedDataModule, whose train_dataloader"),
        (DataLoader(ROWS, 4, sampler=Reversed(EVEN)), "draws by Reversed"),
        (DataLoader(ROWS, 4, sampler=[1, 2]), "draws by list"),
        (DataLoader(ROWS, batch_sampler=BatchSampler(WEIGHTED, 4, False)), "BatchSampler for its batch_sampler"),
        (DataLoader(ROWS, None), "no batches for its batch_sampler, .*: give it a batch_size"),
        (Scaled(ROWS, 4), "loader Scaled has __iter__ of its own, .* collate_fn or in the module's on_after_batch"),
        (Endless(ROWS, 4), "loader Endless has __len__ of its own"),
        (DataLoader(ROWS, 4, sampler=SubsetRandomSampler([0, 40])), "row numbers below 40, the length of TensorD"),
        (DataLoader(ROWS, 4, sampler=SubsetRandomSampler(torch.ones(40) > 0)), "of a mask, take mask.nonzero"),
        (DataLoader(ROWS, 4, sampler=SubsetRandomSampler(torch.ones(40).nonzero())), "flatten"),
        (DataLoader(ROWS, 4, sampler=SubsetRandomSampler([])), "one or more row numbers"),
        ({"a": DataLoader(ROWS, 4)}, "gives dict; partitioning needs one torch DataLoader"),
    ],
)
def test_what_clients_loaders_could_not_follow_is_refused_by_name(loader: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        dealt(loader).setup("fit")


def test_one_client_has_lightnings_batches() -> None:
    """Without shuffling the very batches; with it the same examples in an order that changes with every pass."""
    loader = DataLoader(ROWS, 4, drop_last=True)
    assert rows_of(dealt(loader, 1), 0) == [row for batch in loader for row in batch[0].tolist()]
    in_order = rows_of(dealt(DataLoader(ROWS, 4)), 1)
    assert in_order == sorted(in_order)
    for sampler in (RandomSampler(ROWS), SubsetRandomSampler(range(40))):
        of_one = dealt(DataLoader(ROWS, 4, sampler=sampler), 1).train_dataloader(0)
        passes = [[row for batch in of_one for row in batch[0].tolist()] for _ in range(2)]
        assert passes[0] != passes[1] != sorted(passes[1])


@pytest.mark.parametrize("where", ["loader", "sampler", "subset sampler"])
def test_a_generator_of_the_loaders_own_leaves_the_global_numbers_alone(where: str) -> None:
    def module(seed: int) -> PartitionedDataModule:
        own = torch.Generator().manual_seed(seed)
        if where == "loader":
            return dealt(DataLoader(ROWS, 4, shuffle=True, generator=own))
        sampler = RandomSampler(ROWS, generator=own) if where == "sampler" else SubsetRandomSampler(range(40), own)
        return dealt(DataLoader(ROWS, 4, sampler=sampler, generator=torch.Generator()))

    with generators_kept():
        torch.manual_seed(1)
        first, before = module(1), torch.get_rng_state()
        order = rows_of(first, 0)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)  # what the module draws while it trains does not move the order
        rows_of(first, 1)
        assert rows_of(first, 0) == rows_of(module(1), 0) == order
        assert rows_of(module(2), 0) != order
        torch.manual_seed(2)  # the trainer's seed of the next round
        assert rows_of(first, 0) != order
        loader = first.train_dataloader(0)
        assert [batch[0].tolist() for batch in loader] != [batch[0].tolist() for batch in loader]


class Noisy(Dataset):
    """Examples whose noise comes from a generator that `worker_init_fn` sets."""

    noise = "not seeded"

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> str:
        return self.noise


def seed_worker(worker: int) -> None:
    information = get_worker_info()
    information.dataset.noise = f"{information.dataset.noise} before worker {worker}"


def test_workers_are_made_as_the_loader_has_them() -> None:
    loader = DataLoader(
        Noisy(), 4, num_workers=1, worker_init_fn=seed_worker, persistent_workers=True, in_order=False, timeout=60,
        prefetch_factor=3, multiprocessing_context="fork", collate_fn=list
    )  # fmt: skip
    module = dealt(loader, 1)
    mine = module.train_dataloader(0)
    assert list(mine) == list(loader) == [["not seeded before worker 0"] * 4] * 2
    for name in ("persistent_workers", "in_order", "timeout", "prefetch_factor", "num_workers", "collate_fn"):
        assert getattr(mine, name) == getattr(loader, name)
    assert mine.multiprocessing_context.get_start_method() == "fork"
    assert not hasattr(mine.dataset, "noise")
    assert module.calibration_batch(0) == ["not seeded before worker 0"] * 4


class WithSettings(DataLoader):
    """As torch_geometric's: arguments of its own, which end in a collate function."""

    def __init__(self, dataset: Any, follow_batch: list[str], batch_size: int = 4) -> None:
        super().__init__(dataset, batch_size, shuffle=True, collate_fn=lambda examples: [follow_batch, len(examples)])


def test_a_loader_class_with_arguments_of_its_own() -> None:
    module = dealt(WithSettings(ROWS, ["x"]))
    assert list(module.train_dataloader(0)) == [[["x"], 4]] * 5


class Augmented(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), float(index)


def test_calibration_batches_of_data_that_draw_random_numbers() -> None:
    module = dealt(DataLoader(Augmented(), 4, shuffle=True), 1)
    batch, state = module.calibration_batch(0), torch.get_rng_state()
    assert all(map(torch.equal, module.calibration_batch(0), batch))
    assert torch.equal(torch.get_rng_state(), state)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def test_a_split_by_samplers_holds_out_what_it_holds_out(tmp_path: Any) -> None:
    """Labels are noise, so a held-out accuracy well above one half can only come from held-out rows in training."""
    numbers = torch.Generator().manual_seed(0)
    noise = TensorDataset(torch.randn(300, 20, generator=numbers), torch.randint(0, 2, (300,), generator=numbers))
    order = torch.randperm(300, generator=numbers).tolist()
    data = Given(
        DataLoader(noise, 16, sampler=SubsetRandomSampler(order[:200])),
        DataLoader(noise, 100, sampler=SubsetRandomSampler(order[200:])),
    )
    trainer = FederatedTrainer(
        max_rounds=3, local_epochs=6, logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.writes_model = False
    with generators_kept():
        trainer.fit(Net(), PartitionedDataModule(data, IidPartitioner(2)))
    assert trainer.summary["metric_fp"] < 0.65  # 0.87 where all rows are dealt
