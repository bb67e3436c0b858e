"""What `fedhq` alone shows: what to do next, by what is there."""

import os
import re
from pathlib import Path

import pytest

from fedhq_lightning.cli.main import main, make_parser
from fedhq_lightning.recipe import files as recipe_files


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The commands, in order."""
    assert main([]) == 0
    return re.findall(r"^  ((?:fedhq|eval)\b.*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)


def leave_run(path: Path, text: str, done: bool, age: int) -> None:
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    if done:
        (path / "model").mkdir()
    os.utime(path / "recipe.yaml", (1e9 - age, 1e9 - age))


def test_in_an_empty_folder_a_first_run_one_of_your_own_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    steps = shown(capsys)
    assert steps[0] == "fedhq run digits-smoke"
    assert [step.split()[1] for step in steps if step.startswith("fedhq")] == ["run", "ls", "cp", "--help"]
    for step in steps[:3]:
        known = make_parser().parse_args(step.split()[1:])
        assert getattr(known, "recipe", "digits-smoke") in recipe_files.shipped()
    main([])
    assert len(capsys.readouterr().out.splitlines()) <= 10, "short"


@pytest.mark.parametrize(
    ("text", "done", "first"),
    [
        ("a: 1\n", True, "fedhq eval runs/b/new"),
        ("a: 1\n", False, "fedhq resume runs/b/new"),
        (f"{recipe_files.STARTED_FROM_PYTHON}\na: 1\n", False, "fedhq run digits-smoke"),
        ("\udcff damaged", False, "fedhq run digits-smoke"),
    ],
)
def test_after_runs_the_latest(capsys: pytest.CaptureFixture[str], text: str, done: bool, first: str) -> None:
    leave_run(Path("runs/a/old"), "a: 1\n", done=True, age=100)
    leave_run(Path("runs/b/new"), text, done, age=0)
    steps = shown(capsys)
    assert steps[0] == first
    assert ("fedhq report runs/b/new" in steps) == ("fedhq runs" in steps) == done


def test_the_latest_is_called_as_its_user_calls_it(capsys: pytest.CaptureFixture[str]) -> None:
    leave_run(Path("runs/a/20250101-120000-0a1b2c-mine"), "a: 1\n", done=True, age=100)
    assert shown(capsys)[:2] == ["fedhq eval mine", "fedhq report mine"]
    leave_run(Path("runs/b/20250102-120000-0a1b2d"), "a: 1\n", done=False, age=50)
    assert shown(capsys)[0] == "fedhq resume 0a1b2d"
    Path("runs/b/20250102-120000-0a1b2d/summary.json").write_text("{}")
    assert shown(capsys)[0] == "fedhq report 0a1b2d"
    leave_run(Path("runs/b/20250103-120000-0a1b2e-mine"), "a: 1\n", done=True, age=0)
    assert shown(capsys)[0] == "fedhq eval runs/b/20250103-120000-0a1b2e-mine", "two are called so"
