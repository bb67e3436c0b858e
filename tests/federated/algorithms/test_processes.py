"""Every algorithm on one process, on two, and killed: bitwise the same model."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.callbacks import FixedAllocator, HybridAllocator
from fedhq_lightning.federated.algorithms import (
    FedAdagrad,
    FedAdam,
    FedAsync,
    FedAvgM,
    FedBuff,
    FedDyn,
    FedNova,
    FedYogi,
    Scaffold,
)
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory

from ...programs import FORKING, run_program
from ...small_federation import SmallData, SmallModule, same_bits, trainer
from ...trainer.conftest import make_quick

HYBRID = {"scheme": "w4a8", "fleet": "mixed"}
RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "SCAFFOLD": lambda: {"aggregator": Scaffold()},
    "hybrid SCAFFOLD": lambda: {"aggregator": Scaffold(), "callbacks": [FixedAllocator(0.5)], **HYBRID},
    "hybrid FedNova": lambda: {"aggregator": FedNova(), "callbacks": [FixedAllocator(0.5)], **HYBRID},
    "hybrid FedDyn": lambda: {"aggregator": FedDyn(), "callbacks": [FixedAllocator(0.5)], **HYBRID},
    "hybrid FedBuff": lambda: {"aggregator": FedBuff(2), "callbacks": [FixedAllocator(0.5)], **HYBRID},
    "allotted FedBuff": lambda: {"aggregator": FedBuff(2), "callbacks": [HybridAllocator(qat_from=0)], **HYBRID},
    "FedAsync": lambda: {"aggregator": FedAsync(), "fleet": "mixed"},
    "FedAvgM": lambda: {"aggregator": FedAvgM()},
    "FedAdagrad": lambda: {"aggregator": FedAdagrad()},
    "FedAdam": lambda: {"aggregator": FedAdam()},
    "FedYogi": lambda: {"aggregator": FedYogi()},
}
TWO_PROCESSES = """
import sys
import pytest
from tests.federated.algorithms.test_processes import RUNS, begun
from tests.small_federation import SmallData, SmallModule
from tests.trainer.conftest import make_quick

with pytest.MonkeyPatch.context() as patch:
    make_quick(patch)
    for name in RUNS:
        begun(name, sys.argv[1], devices=2).fit(SmallModule(), SmallData())
"""


def begun(name: str, root: str, **more: Any) -> Any:
    settings = {"max_rounds": 4, "clients_per_round": 3, "final_evaluation": False} | RUNS[name]() | more
    return trainer(**settings, default_root_dir=f"{root}/{name}")


def model_of(run: Path) -> Any:
    return load_checkpoint(RunDirectory.of_checkpoint(run)[1])["state"]["global_state"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The models of undisturbed runs on one process."""
    root, models = tmp_path_factory.mktemp("alone"), dict[str, Any]()

    def model(name: str) -> Any:
        if name not in models:
            there = begun(name, str(root))
            there.fit(SmallModule(), SmallData())
            models[name] = model_of(there.run_dir)
        return models[name]

    return model


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    script = root / "script.py"
    script.write_text(TWO_PROCESSES)
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    done = run_program(str(script), str(root), env=environment)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", RUNS)
def test_on_two_processes(name: str, alone: Callable[[str], Any], two_processes: Path) -> None:
    (run,) = (two_processes / name).glob("*/*")
    assert same_bits(model_of(run), alone(name))


@pytest.mark.parametrize("name", RUNS)
def test_killed(name: str, alone: Callable[[str], Any], tmp_path: Path) -> None:
    process = FORKING.Process(target=_killed_in_round_3, args=(name, str(tmp_path)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (run,) = tmp_path.glob("*/*/*")
    assert RunDirectory(run).saved_checkpoints()[-1].name == "round-000002.ckpt"
    begun(name, str(tmp_path)).fit(SmallModule(), SmallData(), run)
    assert same_bits(model_of(run), alone(name))


def _killed_in_round_3(name: str, root: str) -> None:
    def save_or_die(self: RunDirectory, round_number: int, *others: Any) -> None:
        if round_number == 3:  # its record and its clients' states are on the disk
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, round_number, *others)

    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        save = RunDirectory.save_checkpoint
        patch.setattr(RunDirectory, "save_checkpoint", save_or_die)
        begun(name, root).fit(SmallModule(), SmallData())
