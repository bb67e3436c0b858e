"""Programs of one process or two that are killed at any moment of their run, and go on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from fedhq_lightning.run.records import read_rounds

from ..programs import Program
from ..small_federation import same_bits
from ..small_recipe import changed
from .small_runs import check_as_undisturbed, run_below, timeless

SILOS = Path(__file__).with_name("silo_run.py")
_SECONDS_TO_END = 30.0
"""For what a killed process has left, before it is killed too."""
_RECIPE = {
    "model.class_path": "tests.normed_module.Normed",
    "model.init_args": {"lr": 0.1},
    "trainer.max_rounds": 4,
    "trainer.clients_per_round": 3,
    "trainer.fleet": "mixed",
    "trainer.ema_decay": 0.5,
    "trainer.enable_progress_bar": False,
    "trainer.callbacks": [
        {"class_path": "fedhq_lightning.callbacks.HybridAllocator", "init_args": {"window": 1}},
    ],
}


@dataclass(frozen=True)
class Kind:
    """A way to run.

    Attributes:
        begin: What the program is given to begin below a folder.
        go_on: The same to go on there; None where nothing was begun.
        has_begun: Whether the run is there.
        check: Compare with another folder.
    """

    begin: Callable[[Path], Sequence[str]]
    go_on: Callable[[Path], Sequence[str] | None]
    has_begun: Callable[[Path], bool]
    check: Callable[[Path, Path], None]


def fedhq(devices: int, more: dict[str, Any] | None = None) -> Kind:
    """The command, with so many processes, and more keys of the recipe."""

    def begin(root: Path) -> Sequence[str]:
        recipe = root / "normed.yaml"
        values = {"trainer.devices": devices, "trainer.default_root_dir": str(root / "runs")}
        recipe.write_text(yaml.safe_dump(changed(_RECIPE | values | (more or {}))))
        return ("-m", "fedhq_lightning.cli.main", "run", str(recipe))

    def go_on(root: Path) -> Sequence[str] | None:
        run = run_below(root)
        return None if run is None else ("-m", "fedhq_lightning.cli.main", "resume", str(run))

    def check(root: Path, undisturbed: Path) -> None:
        run, other = run_below(root), run_below(undisturbed)
        assert run is not None
        assert other is not None
        check_as_undisturbed(run, other)

    return Kind(begin, go_on, lambda root: run_below(root) is not None, check)


def _check_silos(root: Path, undisturbed: Path) -> None:
    for rank in (0, 1):
        found, other = (torch.load(each / f"end-{rank}.pt", weights_only=True) for each in (root, undisturbed))
        assert same_bits(dict(found["state"]), dict(other["state"]))
        assert found["steps"] == other["steps"]
        assert all(same_bits(dict(found["momentum"][key]), dict(other["momentum"][key])) for key in other["momentum"])
    records = [
        [timeless(each) for each in read_rounds(folder / "logs/0/rounds.jsonl")] for folder in (root, undisturbed)
    ]
    assert records[0] == records[1]
    assert not list(root.rglob(".*"))


KINDS = {
    "one process": fedhq(1),
    "two processes": fedhq(2),
    "SCAFFOLD": fedhq(1, {"trainer.aggregator": "Scaffold", "trainer.error_feedback": True}),
    "silos": Kind(
        lambda root: (str(SILOS), str(root)),
        lambda root: (str(SILOS), str(root)),
        lambda root: (root / "logs/0").is_dir(),
        _check_silos,
    ),
}


def start(arguments: Sequence[str], cwd: Path) -> Program:
    """A process group of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    return Program(*arguments, cwd=cwd, env=environment, start_new_session=True)


def run_whole(arguments: Sequence[str], cwd: Path) -> tuple[int, str]:
    """A program to its end: exit code, and what it said."""
    program = start(arguments, cwd)
    try:
        printed = program.communicate(240)
    finally:
        _kill_all(program)
    assert program.returncode is not None
    return program.returncode, "".join(printed)


def undisturbed(kind: Kind, root: Path) -> float:
    """A whole run below `root`; seconds from where it has begun to its end."""
    root.mkdir()
    program = start(kind.begin(root), root)
    began = _wait_until(lambda: kind.has_begun(root), program)
    printed = program.communicate(240)
    assert program.returncode == 0, printed
    return time.monotonic() - began


def killed_once(kind: Kind, arguments: Sequence[str], root: Path, seconds: float, chance: random.Random) -> None:
    """Start a program and kill it within so many seconds of where its run has begun: whole, or one of its processes."""
    program = start(arguments, root)
    try:
        _wait_until(lambda: kind.has_begun(root), program)
        time.sleep(chance.uniform(0, seconds))
        processes = _group(program.pid)
        if len(processes) > 1 and chance.random() < 0.5:
            os.kill(chance.choice(processes), signal.SIGKILL)
            deadline = time.monotonic() + _SECONDS_TO_END
            while _group(program.pid) and time.monotonic() < deadline:
                time.sleep(0.02)
    finally:
        _kill_all(program)
        program.communicate(60)


def killed_and_gone_on_with(kind: Kind, root: Path, seconds: float, seed: int) -> str:
    """A run that is killed at a moment of the seed, perhaps once more, and then goes on to its end.

    Returns:
        "resumed"; or "removed" where it was killed before its recipe was written, and said so.
    """
    chance = random.Random(seed)
    root.mkdir()
    killed_once(kind, kind.begin(root), root, seconds, chance)
    if chance.random() < 0.3:
        again = kind.go_on(root)
        assert again is not None
        killed_once(kind, again, root, seconds * 0.7, chance)
    arguments = kind.go_on(root)
    assert arguments is not None
    code, said = run_whole(arguments, root)
    if "it was stopped before it had begun; remove it: rm -r" in said:
        assert code == 2
        shutil.rmtree(root)
        return "removed"
    assert code == 0, said
    return "resumed"


def _wait_until(condition: Callable[[], bool], program: Program) -> float:
    deadline = time.monotonic() + 120
    while not condition():
        assert program.poll() is None, program.communicate(1)
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return time.monotonic()


def _group(leader: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def _kill_all(program: Any) -> None:
    try:
        os.killpg(program.pid, signal.SIGKILL)
    except ProcessLookupError:
        program.kill()
