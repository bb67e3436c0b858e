"""A checkpoint in which one value is another, or missing, is refused in a sentence or gone on from; no traceback."""

import copy
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.callbacks import EarlyStopping, FixedAllocator
from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.run.checkpoint_file import load_checkpoint, to_bytes
from fedhq_lightning.run.directory import RunDirectory

from ..trainer.conftest import make_quick
from ..trainer.runs import fit

OTHERS = [None, 0, -1, 7, 2**70, 1.5, float("nan"), float("inf"), True, "", "text", "1", b"x", (1, 2)]
OTHERS += [[], [1, "a"], {}, {"a": 1}, {1: 2}, torch.zeros(0), torch.ones(2, 3), torch.tensor(1)]
LOOKED_AT = ("state", "described", "wall_phases", "aggregator", "allocator", "callbacks", "evaluator")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        there, _ = fit(default_root_dir=tmp_path_factory.mktemp("runs"), **settings(3))
    run = RunDirectory(there.run_dir)
    run.saved_checkpoints()[0].unlink()
    return run


def settings(rounds: int) -> dict[str, Any]:
    callbacks = [FixedAllocator(0.5), EarlyStopping(patience=50)]
    return {"max_rounds": rounds, "scheme": "w4a8", "ema_decay": 0.5, "callbacks": callbacks}


def changed(saved: dict[str, Any], seed: int) -> dict[str, Any]:
    """With one value in one of the parts, which are chosen equally often, replaced or taken out."""
    chance, saved = random.Random(seed), copy.deepcopy(saved)
    part = chance.choice(LOOKED_AT)
    place = chance.choice([(part,), *((part, *place) for place in places(saved[part]))])
    node: Any = saved
    for name in place[:-1]:
        node = node[name]
    if isinstance(node, dict) and chance.random() < 0.2:
        del node[place[-1]]
    else:
        node[place[-1]] = chance.choice(OTHERS)
    return saved


def places(node: Any) -> Iterator[tuple[Any, ...]]:
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (name,)
        yield from ((name, *place) for place in places(value))


def check(whole: RunDirectory, folder: Path, seeds: range) -> None:
    saved = load_checkpoint(whole.saved_checkpoints()[0])
    ends: Counter[str] = Counter()
    for seed in seeds:
        run = RunDirectory(folder / str(seed))
        shutil.copytree(whole.path, run.path)
        run.saved_checkpoints()[0].write_bytes(to_bytes(changed(saved, seed)))
        try:
            fit(ckpt_path=run.path, **settings(4))
            ends["gone on from"] += 1
        except (ConfigurationError, RunError):
            ends["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        shutil.rmtree(run.path)
    print(ends)
    assert min(ends["gone on from"], ends["refused"]) > len(seeds) // 10


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:max_rounds was")
def test_some(whole: RunDirectory, tmp_path: Path) -> None:
    check(whole, tmp_path, range(30))


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:max_rounds was")
def test_many(whole: RunDirectory, tmp_path: Path) -> None:
    check(whole, tmp_path, range(3000))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)
