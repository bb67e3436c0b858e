"""What a terminal shows while a run is set up."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedhq_lightning.cli.main import main
from fedhq_lightning.support.setup_notice import notice_aside, setting_up

from ..report.test_final_table import Terminal
from ..small_recipe import write_recipe
from ..trainer.conftest import make_quick

BEFORE_TORCH = """
import io, sys

class Terminal(io.StringIO):
    def isatty(self):
        return True

class Interrupted:
    def find_spec(self, name, *others):
        if name == "torch":
            print(repr(sys.stdout.getvalue()))
            raise KeyboardInterrupt

print = lambda text, show=sys.stdout: show.write(text)
sys.meta_path.insert(0, Interrupted())
sys.stdout = Terminal()
from fedhq_lightning.cli.main import main
sys.exit(main(["run", "digits-smoke"]))
"""
NOTICE, CLEARED = "setting up mine ...", "\r\x1b[2K"


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of standard output, which pytest changes after fixtures."""
    found = Terminal()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdout", found)
    monkeypatch.setenv("TERM", "xterm-256color")
    return found


def test_is_there_before_torch_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", BEFORE_TORCH], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stdout == "'setting up digits-smoke ...'"


@pytest.mark.parametrize("progress", [True, False])
def test_gives_way_to_the_display(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, progress: bool) -> None:
    make_quick(monkeypatch)
    terminal = on_a_terminal(monkeypatch)
    write_recipe(tmp_path / "mine.yaml", {"trainer.max_rounds": 1})
    assert main(["run", "mine.yaml", f"--trainer.enable_progress_bar={str(progress).lower()}"]) == 0
    before, after = terminal.getvalue().split(CLEARED, 1)
    assert before == NOTICE
    assert NOTICE not in after
    assert ("rounds" in after.partition("val_accuracy")[0]) == progress


def test_gives_way_to_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = on_a_terminal(monkeypatch)
    write_recipe(tmp_path / "mine.yaml")
    assert main(["run", "mine.yaml", "--trainer.scheme=w9a8"]) == 2
    assert terminal.getvalue() == NOTICE + CLEARED
    assert capsys.readouterr().err.startswith("fedhq: recipe mine: trainer.scheme 'w9a8'")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"LOCAL_RANK": "1"}])
def test_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str]) -> None:
    terminal = on_a_terminal(monkeypatch)
    write_recipe(tmp_path / "mine.yaml")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "mine.yaml", "--trainer.scheme=w9a8"]) == 2
    assert terminal.getvalue() == ""


def test_within_another_and_beside_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with setting_up("mine"):
        with setting_up("the kernels"), notice_aside():
            terminal.write("fedhq: warning: careful\n")
        assert terminal.getvalue().endswith(f"{CLEARED}{NOTICE}")
    kernels = f"{CLEARED}setting up the kernels ..."
    assert terminal.getvalue() == (
        f"{NOTICE}{kernels}{CLEARED}fedhq: warning: careful\nsetting up the kernels ...{CLEARED}{NOTICE}{CLEARED}"
    )
