from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner
from torch.utils.data import SubsetRandomSampler

from fedhq_lightning.data import BreastCancerHospitals, CSVDataModule, PartitionedDataModule
from fedhq_lightning.data.client_holdout import held_back
from fedhq_lightning.errors import ConfigurationError

from .test_partitioned import Wrapped


def drawn(loader: Any) -> list[int]:
    return [row for batch in loader for row in batch[0].tolist()]


class TestHeldBack:
    def test_is_a_share_that_depends_on_seed_and_client_alone(self) -> None:
        rows = np.arange(100, 150)
        found = held_back(rows, 0.2, 3, "a")
        assert found.sum() == 10
        assert (found == held_back(rows, 0.2, 3, "a")).all()
        assert (found != held_back(rows, 0.2, 4, "a")).any()
        assert (found != held_back(rows, 0.2, 3, "b")).any()
        assert (held_back(rows, 0.2, None, "a") == held_back(rows, 0.2, 0, "a")).all()

    @pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0), (2, 1), (3, 2)])
    def test_leaves_one_row_to_train_on(self, count: int, expected: int) -> None:
        assert held_back(np.arange(count), 0.9, None, 0).sum() == expected

    def test_holds_a_row_back_wherever_it_is(self) -> None:
        rows = np.repeat(np.arange(10), 3)
        found = held_back(rows, 0.4, None, 0)
        assert found.sum() == 12
        assert not set(rows[found]) & set(rows[~found])


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.5, True, "0.2"])
def test_refuses_what_is_no_share(share: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"client_holdout .*: must be a share of each client's examples"):
        PartitionedDataModule(Wrapped(), IidPartitioner(3), client_holdout=share)


class TestPartitioned:
    def test_never_trains_on_what_is_held_back(self) -> None:
        whole = PartitionedDataModule(Wrapped(), DirichletPartitioner(6, "label", 0.3, 0))
        data = PartitionedDataModule(Wrapped(), DirichletPartitioner(6, "label", 0.3, 0), client_holdout=0.25)
        for client_id in data.client_ids:
            training, back = drawn(data.train_dataloader(client_id)), drawn(data.client_val_dataloader(client_id))
            assert sorted(training + back) == sorted(drawn(whole.train_dataloader(client_id)))
            assert not set(training) & set(back)
            assert len(back) == round(0.25 * whole.num_examples(client_id))
            assert data.num_examples(client_id) == len(training)
            counts = data.label_counts(client_id)
            assert counts is not None
            assert counts.tolist() == torch.bincount(torch.tensor(training) // 60, minlength=10).tolist()
            assert not set(drawn([data.calibration_batch(client_id)])) & set(back)

    def test_holds_nothing_back_unless_asked(self) -> None:
        data = PartitionedDataModule(Wrapped(), IidPartitioner(3))
        assert [data.client_val_dataloader(client_id) for client_id in data.client_ids] == [None] * 3

    def test_gives_none_where_a_client_has_too_few(self) -> None:
        data = PartitionedDataModule(Wrapped(), IidPartitioner(600), client_holdout=0.5)
        assert data.num_examples(0) == 1
        assert data.client_val_dataloader(0) is None

    def test_another_seed_holds_others_back(self) -> None:
        first, again, other = (
            PartitionedDataModule(Wrapped(), IidPartitioner(3), client_holdout=0.2, holdout_seed=seed)
            for seed in (None, None, 5)
        )
        assert drawn(first.client_val_dataloader(1)) == drawn(again.client_val_dataloader(1))
        assert drawn(first.client_val_dataloader(1)) != drawn(other.client_val_dataloader(1))

    def test_a_row_that_is_drawn_twice(self) -> None:
        sampler = SubsetRandomSampler([*range(100), *range(100)])
        data = PartitionedDataModule(Wrapped(sampler=sampler), IidPartitioner(1), client_holdout=0.2)
        training, back = drawn(data.train_dataloader(0)), drawn(data.client_val_dataloader(0))
        assert (len(training), len(back)) == (160, 40)
        assert not set(training) & set(back)


class TestTables:
    def test_the_fit_and_training_see_the_other_rows_alone(self) -> None:
        whole, data = BreastCancerHospitals(), BreastCancerHospitals(client_holdout=0.2)
        for client_id in data.client_ids:
            back = data.client_val_dataloader(client_id)
            assert back is not None
            count = len(back.dataset)
            assert abs(count - 0.2 * whole.num_examples(client_id)) <= 1.5
            assert data.num_examples(client_id) + count == whole.num_examples(client_id)
            counts = data.label_counts(client_id)
            assert int(counts.sum()) == data.num_examples(client_id)
        assert len(data.val_dataloader().dataset) == len(whole.val_dataloader().dataset)
        assert data.model_inputs()["columns"] != whole.model_inputs()["columns"]

    def test_every_class_of_a_client_stays_in_training(self, tmp_path: Path) -> None:
        rows = [f"{number},{'rare' if number == 7 else 'usual'}" for number in range(30)]
        (tmp_path / "a.csv").write_text("\n".join(["x,y", *rows]) + "\n")
        for seed in range(8):
            data = CSVDataModule(tmp_path, "y", client_holdout=0.9, holdout_seed=seed)
            assert data.label_counts("a").min() >= 1
