"""Personal layers, Ditto and fine-tuning on one process, on two, and killed: bitwise the same models of all clients."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.federated.algorithms import FedBuff
from fedhq_lightning.federated.fine_tuning import FineTuning
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.run import Run

from ...programs import FORKING, run_program
from ...small_federation import same_bits, trainer
from ...trainer.conftest import make_quick
from ..algorithms.test_processes import model_of
from ..test_evaluation_round import HoldingBack
from .test_personal_layers import Normed

HYBRID = {"scheme": "w4a8", "fleet": "mixed"}
RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "layers, tuned": lambda: {"personal_layers": "net.3", "fine_tuning": FineTuning(local_steps=3)},
    "Ditto, tuned": lambda: {"ditto": 0.2, "fine_tuning": FineTuning()},
    "layers, nobody waits": lambda: {"personal_layers": "batch_norm", "aggregator": FedBuff(2)},
    "Ditto, nobody waits": lambda: {"ditto": 0.2, "aggregator": FedBuff(2)},
}
TWO_PROCESSES = """
import sys
import pytest
from tests.federated.personal.test_personal_layers import Normed
from tests.federated.personal.test_processes import RUNS, begun
from tests.federated.test_evaluation_round import HoldingBack
from tests.trainer.conftest import make_quick

with pytest.MonkeyPatch.context() as patch:
    make_quick(patch)
    for name in RUNS:
        begun(name, sys.argv[1], devices=2).fit(Normed(), HoldingBack())
"""


def begun(name: str, root: str, **more: Any) -> Any:
    settings = {"max_rounds": 3, "clients_per_round": 3, "callbacks": [FixedAllocator(0.5)]} | HYBRID | RUNS[name]()
    return trainer(**settings, **more, default_root_dir=f"{root}/{name}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Undisturbed runs on one process."""
    root, runs = tmp_path_factory.mktemp("alone"), dict[str, Path]()

    def run(name: str) -> Path:
        if name not in runs:
            with pytest.MonkeyPatch.context() as patch:
                make_quick(patch)
                there = begun(name, str(root))
                there.fit(Normed(), HoldingBack())
            runs[name] = there.run_dir
        return runs[name]

    return run


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    script = root / "script.py"
    script.write_text(TWO_PROCESSES)
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    done = run_program(str(script), str(root), env=environment)
    assert done.returncode == 0, done.stderr
    return root


def check_alike(run: Path, whole: Path) -> None:
    """The same global model, the same of every client, and the same figures of all of them."""
    assert same_bits(model_of(run), model_of(whole))
    kept = [sorted(each.relative_to(there) for each in there.glob("*_*/*/*.state")) for there in (run, whole)]
    assert kept[0] == kept[1]
    assert {each.parts[0] for each in kept[0]} >= {"client_state"}
    for file in kept[0]:
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    mine, wanted = Run(run).summary, Run(whole).summary
    for name in ("on_clients", "fine_tuning", "virtual_seconds", "downlink_bytes"):
        assert mine[name] == wanted[name]


@pytest.mark.parametrize("name", RUNS)
def test_on_two_processes(name: str, alone: Callable[[str], Path], two_processes: Path) -> None:
    (run,) = (two_processes / name).glob("*/*")
    check_alike(run, alone(name))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("no_program")
def test_killed_before_the_last_checkpoint(name: str, alone: Callable[[str], Path], tmp_path: Path) -> None:
    run = killed(name, tmp_path, _kill_at_the_last_checkpoint)
    assert RunDirectory(run).saved_checkpoints()[-1].name == "round-000002.ckpt"
    begun(name, str(tmp_path)).fit(Normed(), HoldingBack(), run)
    check_alike(run, alone(name))


@pytest.mark.usefixtures("no_program")
def test_killed_while_clients_tune(alone: Callable[[str], Path], tmp_path: Path) -> None:
    name = "Ditto, tuned"
    run = killed(name, tmp_path, _kill_at_the_second_to_tune)
    assert len(list(run.glob("fine_tuned/*/*.state"))) == 1
    assert not (run / "summary.json").exists()
    begun(name, str(tmp_path)).fit(Normed(), HoldingBack(), run)
    check_alike(run, alone(name))


def killed(name: str, root: Path, way: Callable[[pytest.MonkeyPatch], None]) -> Path:
    process = FORKING.Process(target=_killed, args=(name, str(root), way))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (run,) = root.glob("*/*/*")
    return run


def _killed(name: str, root: str, way: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        way(patch)
        begun(name, root).fit(Normed(), HoldingBack())


def _kill_at_the_last_checkpoint(patch: pytest.MonkeyPatch) -> None:
    save = RunDirectory.save_checkpoint

    def save_or_die(self: RunDirectory, round_number: int, *others: Any) -> None:
        if round_number == 3:  # its record and its clients' models are on the disk
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, round_number, *others)

    patch.setattr(RunDirectory, "save_checkpoint", save_or_die)


def _kill_at_the_second_to_tune(patch: pytest.MonkeyPatch) -> None:
    from fedhq_lightning.federated.fine_tuning_round import FineTuningRound

    reason, calls = FineTuningRound._reason, list[object]()

    def tune_or_die(self: FineTuningRound, client_id: Any, *others: Any) -> str:
        calls.append(client_id)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return reason(self, client_id, *others)

    patch.setattr(FineTuningRound, "_reason", tune_or_die)
