"""The bars of a comparison's runs, on a terminal."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedhq_lightning.experiments.rounds_under_way import rounds_done, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write_rounds(runs: Path, count: int) -> None:
    folder = runs / "recipe" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.jsonl").write_text("{}\n" * count)


def test_rounds_are_those_after_the_first_evaluation(tmp_path: Path) -> None:
    assert rounds_done(tmp_path / "hybrid") is None
    for lines, rounds in ((0, 0), (1, 0), (4, 3)):
        write_rounds(tmp_path / "hybrid", lines)
        assert rounds_done(tmp_path / "hybrid") == rounds


@pytest.mark.parametrize("is_terminal", [True, False])
def test_runs_that_are_under_way_have_a_bar_on_a_terminal(tmp_path: Path, is_terminal: bool) -> None:
    for name, lines in (("ended", 17), ("begun", 5)):
        write_rounds(tmp_path / name, lines)
    file = Terminal() if is_terminal else io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=80, color_system=None, _environ={"TERM": "xterm"})
    with shown({name: tmp_path / name for name in ("ended", "begun", "waits")}, 16, console):
        pass
    printed = file.getvalue()
    assert ("begun" in printed and "round 4/16" in printed) is is_terminal
    assert "ended" not in printed
    assert "waits" not in printed
