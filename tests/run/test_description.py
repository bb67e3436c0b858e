"""Descriptions of settings, and what resuming compares."""

import enum
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedhq_lightning.callbacks import EarlyStopping
from fedhq_lightning.data import Digits, PartitionedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedOpt
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.recipe.identity import check_same
from fedhq_lightning.run.description import describe, text_of

from ..small_federation import SmallData, SmallModule, trainer


def test_simple_values_stay() -> None:
    for value in ("text", 3, 2.5, True, None, [1, "a"], {"a": {"b": [1]}}):
        assert describe(value) == value
    assert describe((1, 2)) == [1, 2]
    assert describe(Path("a/b")) == "a/b"
    assert describe({1: 2}) == {"1": 2}


def test_objects_are_class_paths_with_their_settings() -> None:
    found = describe(FedOpt(partial(torch.optim.Adam, lr=0.1)))
    assert found["class_path"] == "fedhq_lightning.federated.algorithms.fed_opt.FedOpt"
    assert found["optimizer"]["init_args"]["lr"] == 0.1
    assert found["optimizer"]["class_path"].endswith("Adam")
    assert describe(QuantScheme("w4a8"))["edge_bits"] == 8


def test_a_module_is_described_by_its_arguments() -> None:
    assert describe(SmallModule(lr=0.3)) != describe(SmallModule(lr=0.2))
    assert describe(SmallModule(lr=0.3)) == describe(SmallModule(lr=0.3))


class Kind(str, enum.Enum):  # noqa: UP042  # older than StrEnum, and still written
    PLAIN = "plain"


class Level(enum.IntEnum):
    LOW = 1


class Colour(enum.Enum):
    RED = ("red", 2.5)


class Word(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Number(float):
    pass


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Kind.PLAIN, "plain"),
        (Level.LOW, 1),
        (Colour.RED, ["red", 2.5]),
        (Word("word"), "word"),
        (Number(0.1), 0.1),
        ({Kind.PLAIN: Word("a")}, {"plain": "a"}),
    ],
)
def test_kinds_of_text_and_numbers_become_plain(value: Any, plain: Any) -> None:
    found = describe(SmallModule(lr=value))["lr"]
    assert found == plain
    assert type(found) is type(plain)
    assert yaml.safe_load(text_of({"lr": found})) == {"lr": plain}
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == plain


def test_data_is_described_by_what_its_constructor_was_given() -> None:
    class Own(SmallData):
        def __init__(self, shift: float, **rest: Any) -> None:
            super().__init__(**rest)
            self._shift = shift
            self.num_train = 0

    data = Own(0.5, batch_size=4)
    before = describe(data)
    assert (before["shift"], before["batch_size"]) == (0.5, 4)
    data.num_train, data.vocabulary = 193, ["a"]  # type: ignore[attr-defined]  # as setup would
    assert describe(data) == before

    class Saved(SmallData):
        def __init__(self, **rest: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    assert describe(Saved(shift=2))["shift"] == 2


def test_a_partitioner_is_described_by_its_private_arguments() -> None:
    from flwr_datasets.partitioner import DirichletPartitioner

    def data(alpha: float) -> PartitionedDataModule:
        partitioner = DirichletPartitioner(4, "label", alpha, min_partition_size=0, seed=0)
        return PartitionedDataModule(Digits(), partitioner)

    first = data(0.5)
    before = describe(first)
    assert before["partitioner"]["alpha"] == [0.5] * 4
    assert describe(data(0.5)) == before
    assert describe(data(0.3)) != before
    first.setup("fit")
    assert describe(first) == before, "setting up changed it"


def test_use_does_not_change_a_description() -> None:
    callback = EarlyStopping(patience=2)
    before = describe(callback)
    assert before["patience"] == 2
    callback.load_state_dict({"best": 0.5, "evaluations_without_improvement": 1, "reason": "none"})
    assert describe(callback) == before


def test_numpy_values_become_plain() -> None:
    described = {"rates": describe(SmallModule(lr=np.float64(0.25)))}  # type: ignore[arg-type]  # a number all the same
    assert yaml.safe_load(text_of(described)) == described


def test_text_is_yaml() -> None:
    described = {"trainer": trainer(seed=3).described, "model": describe(SmallModule())}
    assert yaml.safe_load(text_of(described)) == described


def test_a_logger_of_ones_own_changes_no_bit(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    def described(**settings: Any) -> dict[str, Any]:
        return {"trainer": trainer(**settings).described}

    check_same(described(), described(logger=CSVLogger(tmp_path)))
    check_same(described(), described(logger=[CSVLogger(tmp_path)]))
    with pytest.raises(ConfigurationError, match=r"trainer\.threads"):
        check_same(described(), described(threads=2))
