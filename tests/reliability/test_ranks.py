"""A process of several that ends, stops, is slow or sees other data: told once, in time, and gone on with bitwise."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.cli.main import main

from ..programs import Program
from ..small_recipe import SMALL, write_recipe
from ..trainer.conftest import make_quick
from .test_signals import AS_MODULE, nothing_runs, only_run, until, weights

SECONDS = 2.0
"""That a process may be silent."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in which nothing happened, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    write_recipe(folder / "mine.yaml", {"trainer.max_rounds": 3})
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        assert main(["run", str(folder / "mine.yaml"), f"--trainer.default_root_dir={folder}"]) == 0
    return only_run(folder)


def write_recipe_of_two(path: Path, how: str, rank: int, seconds: float = 0.0, **changes: Any) -> None:
    """Three rounds of two processes; in the second something happens to one of them."""
    ends = {"class_path": "tests.exact_ends.Ends", "init_args": {"how": how, "rank": rank, "seconds": seconds}}
    callbacks = [*SMALL["trainer"]["callbacks"], ends]
    settings = {"trainer.max_rounds": 3, "trainer.devices": 2, "trainer.process_timeout": SECONDS}
    write_recipe(path, {**settings, "trainer.callbacks": callbacks, **changes})


@contextmanager
def started(*arguments: str, **settings: Any) -> Iterator[Program]:
    """A program with a process group of its own, of which nothing is left."""
    program = Program(*arguments, start_new_session=True, **settings)
    try:
        yield program
    finally:
        program.kill()
        if not nothing_runs(program.pid):
            os.killpg(program.pid, signal.SIGKILL)
            raise AssertionError("processes were left running")


GONE = [
    ("SIGKILL", 1, 1, r"fedhq: process 1 was ended by SIGKILL, as the system does where memory is short; go on with: "),
    ("SIGSTOP", 1, 1, r"fedhq: process 1 has not answered for 2 s \(trainer.process_timeout\): .*; go on with: "),
    ("SIGTERM", 1, 1, r"fedhq: process 1 was stopped by SIGTERM; go on with: "),
    ("refuses", 1, 2, r"fedhq: process 1: recipe mine: the disk of one process"),
    ("raises", 1, 1, r"fedhq: process 1: your own code failed; .*ZeroDivisionError: one process's own"),
    ("raises", 0, 1, r"fedhq: your own code failed; .*ZeroDivisionError: one process's own"),
]


@pytest.mark.parametrize(
    ("how", "rank", "code", "words"),
    [*GONE[:2], *(pytest.param(*each, marks=pytest.mark.corner) for each in GONE[2:])],
    ids=lambda value: str(value) if len(str(value)) < 9 else "",
)
def test_a_process_that_is_gone(
    how: str, rank: int, code: int, words: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe_of_two(tmp_path / "mine.yaml", how, rank)
    with started(*AS_MODULE, "run", "mine.yaml") as program:
        _, errors = program.communicate(40)
    run_dir = only_run(tmp_path / "runs")
    if how.startswith("SIG"):
        words += f"fedhq resume runs/mine/{run_dir.name}"
    assert re.fullmatch(words + r"\n", errors, re.DOTALL), errors
    assert errors.count("fedhq: ") == 1
    assert "Traceback" not in errors
    assert program.returncode == code
    make_quick(monkeypatch)
    assert main(["resume", str(run_dir), "--trainer.devices=1"]) == 0
    assert weights(run_dir) == weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGSTOP", 1)])
def test_the_first_process_is_gone(how: str, code: int, whole: Path, tmp_path: Path) -> None:
    """The second tells it; the first, once it goes on, finds that the second has ended, and ends too."""
    write_recipe_of_two(tmp_path / "mine.yaml", how, 0)
    (tmp_path / "script.py").write_text(SCRIPT)
    with started("script.py", "run", "mine.yaml", has_real_second=True) as program:
        told = tmp_path / "told"  # by the second process, when it ends
        until(told.exists, 40)
        if how == "SIGSTOP":
            os.kill(program.pid, signal.SIGCONT)
        _, errors = program.communicate(40)
    run_dir = only_run(tmp_path / "runs")
    words = {
        "SIGKILL": "process 0 is gone: its connections are closed",
        "SIGSTOP": "process 0 has not answered for 2 s (trainer.process_timeout): it is stopped, or its machine or the "
        "network hangs",
    }
    again = f"go on with: fedhq resume runs/mine/{run_dir.name}"
    assert errors == f"fedhq: process 1: {words[how]}; {again}\n"
    assert told.read_text() == "1"
    assert program.returncode == code
    assert main(["resume", str(run_dir), "--trainer.devices=1"]) == 0
    assert weights(run_dir) == weights(whole)


SCRIPT = """
import os, sys
from pathlib import Path
from fedhq_lightning.cli.main import main

code = main()
if os.environ.get("LOCAL_RANK") == "1":
    Path("told.part").write_text(str(code))
    os.rename("told.part", "told")
sys.exit(code)
"""


@pytest.mark.corner
def test_a_slow_process_is_waited_for(tmp_path: Path, whole: Path) -> None:
    write_recipe_of_two(tmp_path / "mine.yaml", "slow", 1, seconds=3 * SECONDS)
    with started(*AS_MODULE, "run", "mine.yaml") as program:
        _, errors = program.communicate(60)
    assert (program.returncode, errors) == (0, "")
    assert weights(only_run(tmp_path / "runs")) == weights(whole)


NO_CHECKPOINT = "there is no checkpoint to go on from"
FAILS_AT_SET_UP = """
import os, sys
from fedhq_lightning.cli.main import main
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import setup

def set_up(*arguments, **keywords):
    if os.environ.get("LOCAL_RANK") == "1":
        {failure}
    return before(*arguments, **keywords)

before, setup.set_up = setup.set_up, set_up
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        ('raise ConfigurationError("no file here")', 2, "fedhq: process 1: recipe mine: no file here\n"),
        (
            "os._exit(7)",
            1,
            "fedhq: process 1 has ended with exit code 7; see what it said; there is no checkpoint to go on from\n",
        ),
    ],
)
def test_a_process_that_does_not_come(failure: str, code: int, words: str, tmp_path: Path) -> None:
    """Such as one without its file: told by it, and nothing is left of the run."""
    write_recipe_of_two(tmp_path / "mine.yaml", "slow", 1)
    (tmp_path / "script.py").write_text(FAILS_AT_SET_UP.format(failure=failure))
    with started("script.py", "run", "mine.yaml") as program:
        _, errors = program.communicate(40)
    assert (errors, program.returncode) == (words, code)
    assert not list(tmp_path.glob("runs/mine/*"))


OTHER = """
import os, sys
from fedhq_lightning.cli.main import main
from fedhq_lightning.data import PartitionedDataModule

def other(self, *arguments):
    found = before(self, *arguments)
    return found if os.environ.get("LOCAL_RANK") != "1" else {other}

before, PartitionedDataModule.{what} = PartitionedDataModule.{what}, other
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("what", "other", "words"),
    [
        ("num_examples", "found + 1", r"the number of examples of client 0 is \d+ there, \d+ in process 0"),
        pytest.param(
            "calibration_batch",
            "[found[0] + 1, found[1]]",
            r"the digest of the first batch of client 0 is '\w+' there",
            marks=pytest.mark.corner,
        ),
        pytest.param(
            "label_counts", "found.flip(0)", "the digest of the labels of client 0 is", marks=pytest.mark.corner
        ),
    ],
)
def test_a_process_with_other_data(what: str, other: str, words: str, tmp_path: Path) -> None:
    write_recipe_of_two(tmp_path / "mine.yaml", "slow", 1)
    (tmp_path / "script.py").write_text(OTHER.format(what=what, other=other))
    with started("script.py", "run", "mine.yaml") as program:
        _, errors = program.communicate(40)
    start = "fedhq: recipe mine: process 1 was given something else than process 0: "
    assert re.match(start + words, errors), errors
    assert errors.count("\n") == 1
    assert program.returncode == 2
    assert not list(tmp_path.glob("runs/mine/*"))


def test_a_port_that_another_program_has(tmp_path: Path) -> None:
    """Nobody else is started then."""
    write_recipe_of_two(tmp_path / "mine.yaml", "slow", 1)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {**os.environ, "MASTER_PORT": str(port)}
        with started(*AS_MODULE, "run", "mine.yaml", env=environment) as program:
            _, errors = program.communicate(40)
    assert errors.startswith(f"fedhq: recipe mine: MASTER_PORT {port}: ")
    assert errors.count("\n") == 1
    assert program.returncode == 2
    assert not list(tmp_path.glob("runs/mine/*"))


@pytest.mark.corner
def test_a_port_at_which_another_program_answers(tmp_path: Path) -> None:
    """The second process of a run whose first could not have the port."""
    write_recipe_of_two(tmp_path / "mine.yaml", "slow", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        as_second = {"MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
        started_at = time.monotonic()
        with started(*AS_MODULE, "run", "mine.yaml", env={**os.environ, **as_second}) as program:
            _, errors = program.communicate(40)
    assert time.monotonic() - started_at < 30
    assert re.fullmatch(rf"fedhq: process 1: process 0 was not reached at 127.0.0.1:{port} within \d+ s: .*\n", errors)
    assert program.returncode == 1


SILOS = """
import os, signal, sys
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from fedhq_lightning.callbacks import FederatedAveraging
from fedhq_lightning.silos.silo_strategy import silo_strategy_on
from lightning.pytorch.strategies import DDPStrategy

class Silo(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        if (self.current_epoch, self.global_rank, batch_idx) == (1, 1, 0):
            os.kill(os.getpid(), signal.Signals[sys.argv[1]])
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = DataLoader(TensorDataset(torch.randn(32, 4), torch.randint(0, 2, (32,))), 8)
trainer = pl.Trainer(
    accelerator="cpu", devices=2, max_epochs=3, strategy=silo_strategy_on(DDPStrategy)(process_timeout=2.0),
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    use_distributed_sampler=False, callbacks=[FederatedAveraging()],
)
trainer.fit(Silo(), data)
"""


@pytest.mark.corner
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("SIGKILL", r"RunError: process 1 was ended by SIGKILL, as the system does where memory is short\n"),
        ("SIGSTOP", r"process 1 has not answered for 2 s \(trainer.process_timeout\): it is stopped, or its machine"),
    ],
)
def test_a_silo_that_is_gone(how: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "silos.py").write_text(SILOS)
    with started("silos.py", how) as program:
        _, errors = program.communicate(90)
    assert len(re.findall(words, errors)) == 1, errors
    assert "pair.cc" not in errors, "what gloo says of it"
    assert program.returncode == 1
