import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from flwr_datasets import partitioner as flwr
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fedhq_lightning.data import Digits, PartitionedDataModule
from fedhq_lightning.errors import ConfigurationError

NUM_EXAMPLES = 600


def label_of(example: Any) -> int:
    return int(example["digit"])


class Wrapped(LightningDataModule):
    """Row numbers, sorted by class, so that a test sees which row went where."""

    def __init__(self, dataset: Any = None, **loader_settings: Any) -> None:
        super().__init__()
        labels = torch.arange(NUM_EXAMPLES) // 60
        self.dataset = TensorDataset(torch.arange(NUM_EXAMPLES), labels) if dataset is None else dataset
        self.loader_settings = {"batch_size": 16, **loader_settings}
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)

    def train_dataloader(self) -> Any:
        return DataLoader(self.dataset, **self.loader_settings)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.arange(7)), batch_size=4)


class Dictionaries(Dataset):
    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"row": index, "digit": index % 10}


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(range(3))


def dirichlet(num_partitions: int = 8, alpha: float = 0.3, **settings: Any) -> flwr.DirichletPartitioner:
    return flwr.DirichletPartitioner(num_partitions, "label", alpha, **{"min_partition_size": 0, **settings})


def rows_of(module: PartitionedDataModule, client_id: int) -> list[int]:
    return torch.cat([batch[0] for batch in module.train_dataloader(client_id)]).tolist()


SIZES = [100, 200, 300]
PARTITIONERS = [
    flwr.IidPartitioner(8),
    dirichlet(),
    dirichlet(self_balancing=True),
    flwr.PathologicalPartitioner(10, "label", 2, class_assignment_mode="deterministic"),
    flwr.ShardPartitioner(10, "label", num_shards_per_partition=2),
    flwr.InnerDirichletPartitioner(SIZES, "label", alpha=0.5),
    flwr.DistributionPartitioner(np.full((10, 2), 0.5), 10, 2, "label", 5),
    flwr.ContinuousPartitioner(5, "label", strictness=0.5),
    flwr.NaturalIdPartitioner("label"),
    flwr.GroupedNaturalIdPartitioner("label", group_size=5),
    flwr.SizePartitioner(SIZES),
    flwr.LinearPartitioner(4),
    flwr.SquarePartitioner(4),
    flwr.ExponentialPartitioner(4),
]


@pytest.mark.parametrize("partitioner", PARTITIONERS, ids=lambda partitioner: type(partitioner).__name__)
def test_every_partitioner_deals_each_example_at_most_once(
    partitioner: flwr.Partitioner, capfd: pytest.CaptureFixture[str]
) -> None:
    module = PartitionedDataModule(Wrapped(), partitioner)
    dealt = [rows_of(module, client_id) for client_id in module.client_ids]
    rows = [row for client in dealt for row in client]
    assert len(rows) == len(set(rows))
    # Only the distribution partitioner may leave examples over.
    assert len(rows) == NUM_EXAMPLES or isinstance(partitioner, flwr.DistributionPartitioner)
    for client_id, client in zip(module.client_ids, dealt, strict=True):
        counts = module.label_counts(client_id)
        assert counts is not None
        assert counts.dtype == torch.int64
        assert torch.equal(counts, torch.bincount(torch.tensor(client, dtype=torch.int64) // 60, minlength=10))
        assert module.num_examples(client_id) == len(client)
    assert capfd.readouterr() == ("", "")


def test_what_a_partitioner_says_is_seen_but_for_its_own_retries(capfd: pytest.CaptureFixture[str]) -> None:
    unused = flwr.PathologicalPartitioner(2, "label", 1, class_assignment_mode="deterministic")
    with pytest.warns(UserWarning, match=r"Classes: .* will NOT be used"):
        PartitionedDataModule(Wrapped(), unused).client_ids  # noqa: B018  # which partitions

    class Own(flwr.IidPartitioner):
        def load_partition(self, partition_id: int) -> Any:
            warnings.warn("a warning of the user's", stacklevel=1)
            print("a print of the user's", file=sys.stderr)
            return super().load_partition(partition_id)

    with pytest.warns(UserWarning, match="a warning of the user's"):
        PartitionedDataModule(Wrapped(), Own(1)).client_ids  # noqa: B018
    assert capfd.readouterr() == ("", "a print of the user's\n")
    retried = dirichlet(num_partitions=30, alpha=0.1, min_partition_size=2, seed=3)
    assert len(PartitionedDataModule(Wrapped(), retried).client_ids) == 30


def test_same_settings_same_clients_and_the_partitioner_can_be_used_again() -> None:
    partitioner = dirichlet()
    first, second = PartitionedDataModule(Wrapped(), partitioner), PartitionedDataModule(Wrapped(), partitioner)
    for client_id in first.client_ids:
        assert sorted(rows_of(first, client_id)) == sorted(rows_of(second, client_id))
    assert sorted(rows_of(first, 0)) != sorted(rows_of(PartitionedDataModule(Wrapped(), dirichlet(seed=1)), 0))


def test_consecutive_blocks_of_a_sorted_set_are_mixed() -> None:
    module = PartitionedDataModule(Wrapped(), flwr.IidPartitioner(4))
    for client_id in module.client_ids:
        counts = module.label_counts(client_id)
        assert counts is not None
        assert counts.min() >= 5


def test_skew_follows_alpha() -> None:
    def largest_share(alpha: float) -> float:
        module = PartitionedDataModule(Wrapped(), dirichlet(alpha=alpha))
        counts = torch.stack([module.label_counts(client_id) for client_id in module.client_ids]).double()
        return (counts.amax(1) / counts.sum(1).clamp(min=1)).mean().item()

    assert largest_share(0.1) > largest_share(100.0) + 0.2


def test_loader_settings_are_carried_over() -> None:
    def collate(examples: list[Any]) -> list[Any]:
        return examples

    for drop_last in (False, True):
        wrapped = Wrapped(batch_size=16, collate_fn=collate, drop_last=drop_last, timeout=0, pin_memory=False)
        module = PartitionedDataModule(wrapped, flwr.SizePartitioner([590, 10]))
        loader = module.train_dataloader(0)
        assert loader.batch_size == 16
        assert loader.collate_fn is collate
        assert [len(batch) for batch in loader] == [16] * 36 + [14] * (not drop_last)
        assert len(module.train_dataloader(1)) == (not drop_last)
        assert len(module.calibration_batch(1)) == 10


def test_workers_are_carried_over() -> None:
    module = PartitionedDataModule(Wrapped(num_workers=1, prefetch_factor=3), flwr.IidPartitioner(60))
    loader = module.train_dataloader(0)
    assert (loader.num_workers, loader.prefetch_factor) == (1, 3)
    assert len(rows_of(module, 0)) == 10


def test_order_follows_the_global_seed() -> None:
    module = PartitionedDataModule(Wrapped(shuffle=True), flwr.IidPartitioner(4))
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append(rows_of(module, 2))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_calibration_batch_holds_the_clients_examples() -> None:
    module = PartitionedDataModule(Wrapped(), flwr.IidPartitioner(4))
    first = module.calibration_batch(1)[0]
    assert set(first.tolist()) <= set(rows_of(module, 1))
    assert len(first) == 16


def test_wrapped_module_is_set_up_once_per_stage_and_keeps_its_held_out_data() -> None:
    wrapped = Wrapped()
    module = PartitionedDataModule(wrapped, flwr.IidPartitioner(4))
    module.prepare_data()
    module.setup("fit")
    module.setup("fit")
    assert wrapped.calls == ["prepare_data", "fit"]
    assert [len(batch[0]) for batch in module.val_dataloader()] == [4, 3]
    with pytest.raises(ConfigurationError, match="Wrapped has no test_dataloader"):
        module.test_dataloader()


def test_usable_without_being_set_up() -> None:
    wrapped = Wrapped()
    assert len(PartitionedDataModule(wrapped, flwr.IidPartitioner(4)).client_ids) == 4
    assert wrapped.calls == ["prepare_data", "fit"]


def test_label_function_for_examples_of_any_kind() -> None:
    module = PartitionedDataModule(Wrapped(Dictionaries()), dirichlet(), label_fn=label_of)
    client_id = max(module.client_ids, key=module.num_examples)
    digits = torch.cat([batch["digit"] for batch in module.train_dataloader(client_id)])
    assert torch.equal(module.label_counts(client_id), digits.bincount(minlength=10))


def test_labels_missing_for_a_label_based_partitioner() -> None:
    with pytest.raises(
        ConfigurationError, match=r"DirichletPartitioner partitions by 'label', but Dictionaries.*label_fn"
    ):
        PartitionedDataModule(Wrapped(Dictionaries()), dirichlet()).setup("fit")


def test_labels_missing_do_not_matter_otherwise() -> None:
    module = PartitionedDataModule(Wrapped(Dictionaries()), flwr.IidPartitioner(3))
    assert module.num_examples(0) == 200
    assert module.label_counts(0) is None


def test_column_of_a_hugging_face_dataset() -> None:
    writers = [f"writer {row % 3}" for row in range(30)]
    table = datasets.Dataset.from_dict({"row": list(range(30)), "writer": writers})
    module = PartitionedDataModule(Wrapped(table), flwr.NaturalIdPartitioner("writer"))
    assert list(module.client_ids) == [0, 1, 2]
    rows = torch.cat([batch["row"] for batch in module.train_dataloader(1)])
    assert sorted(rows.tolist()) == list(range(1, 30, 3))
    assert module.label_counts(1) is None


def test_empty_clients_stay_listed() -> None:
    module = PartitionedDataModule(Wrapped(), dirichlet(num_partitions=100, alpha=0.01))
    empty = [client_id for client_id in module.client_ids if module.num_examples(client_id) == 0]
    assert len(module.client_ids) == 100
    assert empty
    assert module.label_counts(empty[0]).tolist() == [0] * 10


def test_dirichlet_that_cannot_reach_its_minimum_says_what_to_change() -> None:
    with pytest.raises(
        ConfigurationError, match=r"DirichletPartitioner .*min_partition_size is 10.*set min_partition_size: 0"
    ):
        PartitionedDataModule(Wrapped(), flwr.DirichletPartitioner(100, "label", 0.05)).setup("fit")


@pytest.mark.parametrize(
    ("partitioner", "message"),
    [
        (dirichlet(num_partitions=1000), "DirichletPartitioner cannot partition these 600 examples"),
        (flwr.PathologicalPartitioner(5, "label", 11), "num_classes_per_partition"),
        (flwr.SizePartitioner([500, 500]), "SizePartitioner cannot partition these 600 examples"),
        (flwr.VerticalEvenPartitioner(2), "splits columns, not examples"),
        (dirichlet(seed=None), "seed null"),
    ],
)
def test_partitioners_that_refuse(partitioner: flwr.Partitioner, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PartitionedDataModule(Wrapped(), partitioner).setup("fit")


def test_a_partitioner_that_holds_a_dataset() -> None:
    partitioner = flwr.IidPartitioner(2)
    partitioner.dataset = datasets.Dataset.from_dict({"row": [1, 2]})
    with pytest.raises(ConfigurationError, match="already used for another dataset"):
        PartitionedDataModule(Wrapped(), partitioner).setup("fit")


def test_a_partitioner_of_ones_own() -> None:
    class EveryOther(flwr.Partitioner):
        num_partitions = 2

        def load_partition(self, partition_id: int) -> datasets.Dataset:
            return self.dataset.filter(lambda example: example["fedhq_row"] % 2 == partition_id)

    module = PartitionedDataModule(Wrapped(), EveryOther())
    assert sorted(rows_of(module, 1)) == list(range(1, NUM_EXAMPLES, 2))


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (Wrapped(Stream()), "Stream has no length or no indices"),
        (Wrapped(batch_size=None), "give it a batch_size"),
    ],
)
def test_loaders_that_cannot_be_partitioned(wrapped: Wrapped, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PartitionedDataModule(wrapped, flwr.IidPartitioner(2)).setup("fit")


def test_several_training_loaders_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrapped, "train_dataloader", lambda self: [1, 2])
    with pytest.raises(ConfigurationError, match="gives list; partitioning needs one torch DataLoader"):
        PartitionedDataModule(Wrapped(), flwr.IidPartitioner(2)).setup("fit")


def test_wrapping_twice_is_refused() -> None:
    module = PartitionedDataModule(Wrapped(), flwr.IidPartitioner(2))
    with pytest.raises(ConfigurationError, match="PartitionedDataModule has clients already"):
        PartitionedDataModule(module, flwr.IidPartitioner(2))


@pytest.mark.parametrize("client_id", [-1, 2, "0"])
def test_unknown_clients(client_id: Any) -> None:
    module = PartitionedDataModule(Wrapped(), flwr.IidPartitioner(2))
    with pytest.raises(KeyError, match="the clients are 0 to 1"):
        module.num_examples(client_id)


def test_ten_thousand_clients_are_fast() -> None:
    labels = torch.arange(60_000) % 10
    wrapped = Wrapped(TensorDataset(torch.arange(60_000), labels))
    start = time.process_time()  # a wall clock tells of the machine's other work too
    module = PartitionedDataModule(wrapped, dirichlet(num_partitions=10_000))
    total = sum(module.num_examples(client_id) for client_id in module.client_ids)
    assert total == 60_000
    # 0.5 s; an ordinary datasets.Dataset takes 8 s.
    assert time.process_time() - start < 5


def test_from_yaml() -> None:
    parser = ArgumentParser()
    parser.add_argument("--data", type=PartitionedDataModule)
    configuration = """
    class_path: fedhq_lightning.data.PartitionedDataModule
    init_args:
      datamodule: {class_path: fedhq_lightning.data.Digits, init_args: {batch_size: 8}}
      partitioner:
        class_path: flwr_datasets.partitioner.DirichletPartitioner
        init_args: {num_partitions: 5, partition_by: label, alpha: 0.3, min_partition_size: 0}
    """
    module = parser.instantiate(parser.parse_object({"data": yaml.safe_load(configuration)})).data
    assert isinstance(module.datamodule, Digits)
    assert sum(module.num_examples(client_id) for client_id in module.client_ids) == 1442
    images, _ = next(iter(module.train_dataloader(0)))
    assert images.shape[1:] == (1, 8, 8)


@pytest.mark.corner
def test_nothing_is_written_to_the_users_folder_or_the_terminal(tmp_path: Path) -> None:
    script = """
from fedhq_lightning.data import Digits, PartitionedDataModule
from flwr_datasets.partitioner import DirichletPartitioner, ShardPartitioner
from flwr_datasets.common.telemetry import FLWR_TELEMETRY_ENABLED
assert FLWR_TELEMETRY_ENABLED == "0"
for partitioner in (
    DirichletPartitioner(5, "label", 0.3), ShardPartitioner(5, "label", num_shards_per_partition=2)
):
    module = PartitionedDataModule(Digits(), partitioner)
    list(module.train_dataloader(0))
"""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FLWR", "HF_", "XDG"))},
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        # Matplotlib, which flwr-datasets imports, keeps a font cache of its own.
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for name in ("home", "tmp", "matplotlib"):
        (tmp_path / name).mkdir()
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    noise = [line for line in result.stderr.splitlines() if "font cache" not in line]
    assert (result.stdout, noise) == ("", [])
    assert not list((tmp_path / "home").iterdir())
    assert not list((tmp_path / "tmp").iterdir())
