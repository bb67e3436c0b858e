"""The commands, as a user meets them at a terminal."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from fedhq_lightning.cli.main import main, make_parser
from fedhq_lightning.recipe import files as recipe_files

from ..programs import Program
from ..small_recipe import SMALL, write_recipe
from ..trainer.conftest import make_quick

# Lightning starts the other processes of a run as the first one was started.
AS_MODULE = ("-m", "fedhq_lightning.cli.main")


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    """`fedhq` adds the working directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def start(*arguments: str, interpreter: Sequence[str] = AS_MODULE, **settings) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *interpreter, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def finish(process: subprocess.Popen[str] | Program, seconds: float = 240) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        (os.killpg if os.getpgid(process.pid) == process.pid else os.kill)(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output, errors


QUICK = [
    (),
    ("--help",),
    ("ls",),
    ("cp", "digits-smoke"),
    ("run", "--help"),
    ("resume", "--help"),
    ("profile", "--help"),
    ("tune", "--help"),
    ("compare", "--help"),
    ("flower", "--help"),
    ("eval", "--help"),
    ("export", "--help"),
    ("report", "--help"),
    ("runs", "--help"),
    ("completion", "--help"),
    ("--version",),
]


@pytest.mark.parametrize("arguments", QUICK, ids=lambda arguments: " ".join(arguments) or "no command")
def test_answers_at_once(arguments):
    """None imports a library, and what is left is little work: processor time, since a wall clock tells of others."""
    code = """
import atexit, json, sys, time

def tell():
    new = {name: getattr(sys.modules[name], "__file__", None) or "" for name in set(sys.modules) - before}
    libraries = [name for name, file in new.items() if "-packages" in file and name.split(".")[0] != "fedhq_lightning"]
    with open("told.json", "w") as file:
        json.dump([libraries, time.process_time()], file)

before = set(sys.modules)
atexit.register(tell)
from fedhq_lightning.cli.main import main
sys.exit(main())
"""
    returncode, output, errors = finish(start(*arguments, interpreter=("-c", code)))
    assert (returncode, errors) == (0, "")
    assert output
    libraries, seconds = json.loads(Path("told.json").read_text())
    assert libraries == []
    assert seconds < 0.6, "ten times what it takes"


COMMANDS = [
    "ls",
    "cp",
    "show",
    "run",
    "runs",
    "resume",
    "eval",
    "export",
    "report",
    "profile",
    "tune",
    "compare",
    "flower",
    "completion",
]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: fedhq {command}".rstrip())
    assert re.search(rf"examples?:\n.*\bfedhq {command or 'ls'}\b", shown)
    assert "--debug" in shown
    if command == "run":
        assert "fedhq show NAME" in shown, "where the keys are told"


def test_every_command_is_tested_for_its_help():
    [subparsers] = [action for action in make_parser()._actions if action.dest == "command"]
    assert list(subparsers.choices) == COMMANDS


def test_ls(capsys):
    assert main(["ls"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == list(recipe_files.shipped())
    assert any(re.match(r"digits-smoke +scikit-learn's 1,797 digits", line) for line in shown)


def test_cp(capsys, tmp_path):
    assert main(["cp", "digits-smoke"]) == 0
    assert capsys.readouterr().out == "digits-smoke.yaml written; run it with: fedhq run digits-smoke.yaml\n"
    assert main(["cp", "digits-smoke", "mine.yaml"]) == 0
    text = recipe_files.find("digits-smoke")[1]
    assert (tmp_path / "digits-smoke.yaml").read_text() == (tmp_path / "mine.yaml").read_text() == text


def test_cp_leaves_an_existing_file_alone(capsys, tmp_path):
    (tmp_path / "digits-smoke.yaml").write_text("mine")
    assert main(["cp", "digits-smoke"]) == 2
    assert capsys.readouterr().err == ("fedhq: digits-smoke.yaml is there already; name another file, or remove it\n")
    assert (tmp_path / "digits-smoke.yaml").read_text() == "mine"


def test_what_is_shown_can_be_shown_again(capsys, tmp_path):
    assert main(["show", "digits-smoke", "--trainer.max_rounds=9"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# digits-smoke: ")
    assert yaml.safe_load(shown)["trainer"]["max_rounds"] == 9
    (tmp_path / "mine.yaml").write_text(shown)
    assert main(["show", "mine.yaml"]) == 0
    assert capsys.readouterr().out == shown


def test_run_leaves_its_recipe_which_can_be_run_again(capsys, monkeypatch, tmp_path):
    make_quick(monkeypatch)
    write_recipe(tmp_path / "mine.yaml")
    assert main(["run", "mine.yaml", "--trainer.max_rounds=1"]) == 0
    shown = capsys.readouterr()
    run_dir = next((tmp_path / "runs" / "mine").iterdir())
    assert shown.err == ""
    assert shown.out.splitlines()[-1] == f"model, report and records: {run_dir.relative_to(tmp_path)}"
    recipe = (run_dir / "recipe.yaml").read_text()
    assert main(["show", "mine.yaml", "--trainer.max_rounds=1"]) == 0
    assert capsys.readouterr().out == recipe
    (tmp_path / "again.yaml").write_text(recipe)
    assert main(["run", "again.yaml"]) == 0
    again = next((tmp_path / "runs" / "again").iterdir())
    assert (again / "clients.parquet").exists()


def test_classes_in_the_current_directory_are_found(capsys, tmp_path):
    """As with `python script.py`; the folder of an installed `fedhq` is another one."""
    assert not {"", str(tmp_path)} & set(sys.path)
    (tmp_path / "my_model_of_mine.py").write_text(
        "from fedhq_lightning.models import MLP\n\n\nclass MyModel(MLP):\n    pass\n"
    )
    write_recipe(tmp_path / "mine.yaml", {"model.class_path": "my_model_of_mine.MyModel"})
    assert main(["show", "mine.yaml"]) == 0
    assert "class_path: my_model_of_mine.MyModel" in capsys.readouterr().out


OWN_LINES = (
    r"start .*, set-up .* wall",
    r"tiers, with virtual times of one round, medians",
    r"Rounds take .* virtual; QAT begins .*; the report tells why\.",
    r"(export|evaluation|report) \.\.\.",
    r"round \d+/\d+ \| .*",
    r"digits-smoke \d{8}-\d{6}-\w+",
    r"  [a-z].*  .*",
    r"tiers; .*",
    r"model, report and records: runs/digits-smoke/.*",
)


def test_a_run_prints_nothing_but_its_own_lines(tmp_path):
    """With W&B offline, in a home without any cache; tests have no network."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MPL"))}
    returncode, output, errors = finish(start("run", "digits-smoke", env=environment | {"HOME": str(home)}))
    assert (returncode, errors) == (0, "")
    assert [line for line in output.splitlines() if not any(re.fullmatch(own, line) for own in OWN_LINES)] == []
    assert output.count("\nround ") == 4
    run_dir = next((tmp_path / "runs" / "digits-smoke").iterdir())
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb")), "it was W&B that kept silent"


def write_recipe_that_ends(path: Path, how: str, devices: int) -> None:
    ends = {"class_path": "tests.exact_ends.Ends", "init_args": {"how": how}}
    settings = {"trainer.max_rounds": 100_000, "trainer.devices": devices}
    write_recipe(path, {**settings, "trainer.callbacks": [*SMALL["trainer"]["callbacks"], ends]})


@pytest.mark.parametrize(
    ("devices", "how"), [(1, "sigint"), pytest.param(2, "sigint", marks=pytest.mark.corner), (2, "ctrl-c")]
)
def test_interrupted(capsys, tmp_path, devices, how):
    """Ctrl-C reaches every process of a terminal's foreground group; `kill -INT` only the one that it names."""
    write_recipe_that_ends(tmp_path / "mine.yaml", how, devices)
    if devices == 1:
        returncode, errors = main(["run", "mine.yaml"]), capsys.readouterr().err
    else:
        returncode, _, errors = finish(Program(*AS_MODULE, "run", "mine.yaml", start_new_session=True))
    run_dir = next((tmp_path / "runs" / "mine").iterdir())
    assert errors == f"fedhq: interrupted; go on with: fedhq resume {run_dir.relative_to(tmp_path)}\n"
    assert returncode == 130
    assert list((run_dir / "checkpoints").glob("round-*.ckpt"))


@pytest.fixture
def stopped(capsys, monkeypatch, tmp_path) -> Path:
    """A run that was interrupted in its second round."""
    from fedhq_lightning.federated.rounds import RoundLoop

    make_quick(monkeypatch)  # also for what goes on with it in this process
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "fleet.yaml").write_text("profiles: {raspberry-pi-4: 1}\n")
    write_recipe(tmp_path / "mine.yaml", {"trainer.max_rounds": 3, "trainer.fleet": "devices/fleet.yaml"})
    plan = RoundLoop._plan

    def interrupt(self, round_number):
        if round_number == 2:
            raise KeyboardInterrupt
        return plan(self, round_number)

    with monkeypatch.context() as patch:
        patch.setattr(RoundLoop, "_plan", interrupt)
        assert main(["run", "mine.yaml"]) == 130
    capsys.readouterr()
    return next((tmp_path / "runs" / "mine").iterdir())


def test_resume_from_another_folder(capsys, monkeypatch, tmp_path, stopped):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["resume", str(stopped)]) == 0, capsys.readouterr().err
    assert (stopped / "summary.json").exists()


def test_resume_from_a_checkpoint(capsys, stopped):
    older = min((stopped / "checkpoints").glob("round-*.ckpt"))
    assert main(["resume", str(older)]) == 0, capsys.readouterr().err
    assert [json.loads(line)["round"] for line in (stopped / "rounds.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    assert main(["resume", str(stopped / "checkpoints" / "best.ckpt")]) == 2
    assert "one round's model, not where a run stood; give a run directory" in capsys.readouterr().err
    assert not older.exists()
    assert main(["resume", str(older)]) == 2
    assert "there is no such folder or checkpoint; give a run directory" in capsys.readouterr().err


WAITS = """
import sys, time
from pathlib import Path
from fedhq_lightning.cli import main as cli
from fedhq_lightning.federated.rounds import RoundLoop

def wait(self):
    Path("going").touch()
    while not Path("go on").exists():
        time.sleep(0.01)
    run(self)

run, RoundLoop.run = RoundLoop.run, wait
sys.exit(cli.main())
"""


@pytest.mark.corner
def test_two_at_once(capsys, stopped, tmp_path):
    """Two `fedhq resume` of one run: one goes on, the other is refused; and later completes it once more."""
    (tmp_path / "waits.py").write_text(WAITS)
    first = Program("waits.py", "resume", str(stopped))
    try:
        while not (tmp_path / "going").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        assert main(["resume", str(stopped)]) == 2
        assert capsys.readouterr().err == (
            f"fedhq: resume {stopped}: {stopped}: this run is going on in another process; let it end, or stop it, "
            "first\n"
        )
        (tmp_path / "go on").touch()
        assert finish(first)[::2] == (0, "")
    finally:
        first.kill()
    rounds = (stopped / "rounds.jsonl").read_text()
    assert [json.loads(line)["round"] for line in rounds.splitlines()] == [0, 1, 2, 3]
    assert main(["resume", str(stopped)]) == 0
    assert (stopped / "rounds.jsonl").read_text() == rounds


SLOW_TO_COMPLAIN = """
import sys, time
from lightning.fabric.strategies.launchers import subprocess_script
from fedhq_lightning.cli import main as cli

def complain_late(message):
    if cli.is_first_process():
        time.sleep(4)  # longer than another process takes to end
    complain(message)

complain, cli.complain = cli.complain, complain_late
# Lightning looks every five seconds whether another process has failed, and then kills the first.
subprocess_script._ChildProcessObserver.__init__.__defaults__ = (0.01,)
sys.exit(cli.main())
"""


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.corner)])
def test_a_folder_that_is_removed_meanwhile(capsys, tmp_path, devices):
    """Told by the first process, however late it comes to it."""
    write_recipe_that_ends(tmp_path / "mine.yaml", "folder gone", devices)
    (tmp_path / "script.py").write_text(SLOW_TO_COMPLAIN)
    if devices == 1:
        returncode, errors = main(["run", "mine.yaml"]), capsys.readouterr().err
    else:
        returncode, _, errors = finish(Program("script.py", "run", "mine.yaml", start_new_session=True))
    assert returncode == 2
    assert re.fullmatch(r"fedhq: recipe mine: runs/mine/\S+: cannot be written \(No such file or directory\)\n", errors)


def test_interrupted_before_the_first_checkpoint(capsys, monkeypatch, tmp_path):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    write_recipe(tmp_path / "mine.yaml")
    monkeypatch.setattr("fedhq_lightning.trainer.RoundLoop.run", interrupt)
    assert main(["run", "mine.yaml"]) == 130
    assert capsys.readouterr().err == ("fedhq: interrupted before the first checkpoint: there is nothing to resume\n")
