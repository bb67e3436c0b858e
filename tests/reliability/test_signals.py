"""SIGTERM and SIGHUP at any moment: one line, the signal's exit code, nothing left running, the same bits after."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.cli.main import main
from fedhq_lightning.support.signals import Stopped, check_stopped, stoppable

from ..programs import Program
from ..small_recipe import SMALL, write_recipe
from ..trainer.conftest import make_quick

AS_MODULE = ("-m", "fedhq_lightning.cli.main")
CODES = {"SIGTERM": 143, "SIGHUP": 129}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    write_recipe(folder / "mine.yaml")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        assert main(["run", str(folder / "mine.yaml"), f"--trainer.default_root_dir={folder}"]) == 0
    return only_run(folder)


def only_run(folder: Path) -> Path:
    (run_dir,) = folder.glob("mine/*/")
    return run_dir


def weights(run_dir: Path) -> bytes:
    return (run_dir / "model" / "weights.safetensors").read_bytes()


def raising(name: str, at: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Has a function raise a signal when it is called for the `at`-th time, before it does anything."""
    calls = 0

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def raise_or_call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                signal.raise_signal(signal.Signals[name])
            return function(*arguments, **keywords)

        return raise_or_call

    return around


MOMENTS = [
    ("fedhq_lightning.federated.client_fit.ClientFitter", "fit", 3),
    ("fedhq_lightning.local.evaluation.Evaluator", "evaluate", 2),
    ("fedhq_lightning.federated.server.ServerRound", "close", 2),
    ("os", "replace", 7),  # between a file's writing and its taking the place of the old one
    ("os", "replace", 11),
    ("fedhq_lightning.run.directory.RunDirectory", "append_round", 3),
    ("fedhq_lightning.finish.complete", "deploy", 1),
]


@pytest.mark.parametrize(
    ("where", "function", "at", "name"), [*((*each, "SIGTERM") for each in MOMENTS), (*MOMENTS[0], "SIGHUP")]
)
def test_a_run_is_gone_on_with_to_the_same_bits(
    where: str,
    function: str,
    at: int,
    name: str,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pkgutil import resolve_name

    make_quick(monkeypatch)
    write_recipe(tmp_path / "mine.yaml")
    with monkeypatch.context() as patch:
        holder = resolve_name(where)
        patch.setattr(holder, function, raising(name, at)(getattr(holder, function)))
        assert main(["run", "mine.yaml"]) == CODES[name]
    run_dir = only_run(tmp_path / "runs")
    assert capsys.readouterr().err == f"fedhq: stopped by {name}; go on with: fedhq resume runs/mine/{run_dir.name}\n"
    assert main(["resume", str(run_dir)]) == 0
    assert weights(run_dir) == weights(whole)
    assert len((run_dir / "rounds.jsonl").read_text().splitlines()) == 3
    assert signal.getsignal(signal.Signals[name]) is signal.SIG_DFL


def test_before_the_first_checkpoint_there_is_nothing_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedhq_lightning.federated import setup

    write_recipe(tmp_path / "mine.yaml")
    monkeypatch.setattr(setup, "set_up", raising("SIGTERM", 1)(setup.set_up))
    assert main(["run", "mine.yaml"]) == 143
    assert capsys.readouterr().err == (
        "fedhq: stopped by SIGTERM before the first checkpoint: there is nothing to resume\n"
    )
    assert not (tmp_path / "runs").exists()


def write_recipe_that_ends(path: Path, how: str, **changes: Any) -> None:
    ends = {"class_path": "tests.exact_ends.Ends", "init_args": {"how": how}}
    callbacks = [*SMALL["trainer"]["callbacks"], ends]
    write_recipe(path, {"trainer.max_rounds": 100_000, "trainer.callbacks": callbacks, **changes})


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP to all"])
def test_two_processes_end_together(how: str, tmp_path: Path) -> None:
    """A scheduler tells one process or all of them; a terminal that closes all."""
    write_recipe_that_ends(tmp_path / "mine.yaml", how, **{"trainer.devices": 2})
    program = Program(*AS_MODULE, "run", "mine.yaml", start_new_session=True)
    try:
        _, errors = program.communicate(60)
    finally:
        program.kill()
    name = how.removesuffix(" to all")
    run_dir = only_run(tmp_path / "runs")
    assert errors == f"fedhq: stopped by {name}; go on with: fedhq resume runs/mine/{run_dir.name}\n"
    assert program.returncode == CODES[name]
    assert nothing_runs(program.pid)


def nothing_runs(group: int) -> bool:
    """Whether every process of a group has ended, or does within some seconds."""
    for _ in range(100):
        alive = [stat for stat in Path("/proc").glob("[0-9]*/stat") if _is_of(group, stat)]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def _is_of(group: int, stat: Path) -> bool:
    try:
        fields = stat.read_text().rpartition(") ")[2].split()
    except OSError:  # it has ended meanwhile
        return False
    return fields[0] != "Z" and int(fields[2]) == group


SLOW_TO_END = """
import os, signal, sys, time
from pathlib import Path
from fedhq_lightning.cli.main import main
from fedhq_lightning.trainer import FederatedTrainer

def call(self, hook, *arguments):
    if hook == "on_exception":
        Path("ending").touch()
        time.sleep(60)
    before(self, hook, *arguments)

before, FederatedTrainer.call = FederatedTrainer.call, call
sys.exit(main())
"""


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGINT")])
def test_a_second_signal_ends_it_at_once(first: str, second: str, tmp_path: Path) -> None:
    write_recipe_that_ends(tmp_path / "mine.yaml", "sigint" if first == "SIGINT" else first)
    (tmp_path / "script.py").write_text(SLOW_TO_END)
    program = Program("script.py", "run", "mine.yaml")
    try:
        until(lambda: (tmp_path / "ending").exists() or program.returncode is not None)
        os.kill(program.pid, signal.Signals[second])
        _, errors = program.communicate(5)
    finally:
        program.kill()
    assert (program.returncode, errors) == (-signal.Signals[second], "")


def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    write_recipe_that_ends(tmp_path / "mine.yaml", "SIGHUP", **{"trainer.max_rounds": 3})
    (tmp_path / "script.py").write_text(
        "import signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from fedhq_lightning.cli.main import main\nsys.exit(main())\n"
    )
    program = Program("script.py", "run", "mine.yaml")
    try:
        _, errors = program.communicate(60)
    finally:
        program.kill()
    assert (program.returncode, errors) == (0, "")


@pytest.mark.slow
def test_a_terminal_that_closes(tmp_path: Path) -> None:
    """What is shown on it can be shown no more; the run ends as if that were no matter."""
    write_recipe(tmp_path / "mine.yaml", {"trainer.max_rounds": 100_000})
    control, terminal = pty.openpty()
    command = [sys.executable, "-c", "import sys; from fedhq_lightning.cli.main import main; sys.exit(main())"]
    # A shell would make the terminal its own; `setsid --ctty` does that for one program.
    program = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command, "run", "mine.yaml"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        shown = b""
        while b"round 1" not in shown and b"1/100" not in shown:
            shown += os.read(control, 4096)
            assert program.poll() is None, shown
        until(lambda: bool(list(tmp_path.glob("runs/mine/*/checkpoints/round-*.ckpt"))))
        os.close(control)
        assert program.wait(60) == 129
    finally:
        program.kill()


SCRIPT = """
import signal, sys
from fedhq_lightning import FederatedTrainer
from tests.small_federation import SmallData, SmallModule
from tests.exact_ends import Ends
{before}
trainer = FederatedTrainer(max_rounds={rounds}, logger=False, callbacks=[Ends("SIGTERM")], enable_progress_bar=False)
try:
    trainer.fit(SmallModule(), SmallData())
finally:
    print("the script's own end")
print("fitted", signal.getsignal(signal.SIGTERM))
"""


def test_a_script_ends_with_the_signals_exit_code(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(before="", rounds=100_000))
    program = Program("script.py")
    output, errors = program.communicate(60)
    assert program.returncode == 143, errors
    assert output == "the script's own end\n"
    assert re.fullmatch(
        r"stopped by SIGTERM; go on with: fit\(module, datamodule, ckpt_path='runs/smallmodule/\S+'\)\n", errors
    )


def test_a_scripts_own_handler_is_kept(tmp_path: Path) -> None:
    own = "signal.signal(signal.SIGTERM, lambda *_: print('own'))"
    (tmp_path / "script.py").write_text(SCRIPT.format(before=own, rounds=3))
    program = Program("script.py")
    output, errors = program.communicate(60)
    assert (program.returncode, errors) == (0, "")
    assert output.startswith("own\nthe script's own end\nfitted <function <lambda>")


def test_what_a_library_swallowed_is_raised_again() -> None:
    with stoppable():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            check_stopped()
    check_stopped()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_a_comparison_with_two_workers(tmp_path: Path) -> None:
    write_recipe(tmp_path / "mine.yaml", {"trainer.max_rounds": 100_000})
    command = [*AS_MODULE, "compare", "mine.yaml", "--allocators", "all-ptq", "all-qat", "--workers", "2"]
    program = Program(*command, start_new_session=True)
    try:
        until(lambda: len(list(tmp_path.glob("comparisons/mine/**/round-*.ckpt"))) > 1, 120)
        os.kill(program.pid, signal.SIGTERM)
        _, errors = program.communicate(30)
    finally:
        program.kill()
    assert program.returncode == 143, errors
    assert errors == (
        "fedhq: stopped by SIGTERM; finished cells are in comparisons/mine: the same command goes on from there\n"
    )
    assert nothing_runs(program.pid)
