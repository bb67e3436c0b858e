"""Every script of examples/ runs as its first lines say, is short, and complains of nothing."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
_ROUNDS = "2"
_PRINTS = {
    "compare_schemes": "| w2a8, edges too |",
    "federated_digits": "model.pt2 on one batch",
    "hybrid_allocator": "allocation.svg",
    "own_module": "'quantized/val_accuracy'",
    "quantized_training": "model.pt2 on one batch",
    "silos": "deployed model: ",
}
"""What only a script that came to its end has printed."""

_SLOW = ("compare_schemes", "silos")
"""Sixteen runs; two processes."""

by_name = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def test_every_example_is_known_here() -> None:
    assert {script.stem for script in SCRIPTS} == set(_PRINTS)


@by_name
def test_example_is_short_and_says_how_to_run_it(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    said = ast.get_docstring(ast.parse(text))
    assert said is not None
    assert f"python examples/{script.name}" in said.replace("\n", " ")


# Runs scripts one after another, as if each were alone but for what is imported and compiled already. What one prints,
# to whichever end, goes to files of its own; so does what the interpreter says at its end, to those of the last.
_ONE_AFTER_ANOTHER = """
import logging, os, runpy, sys, traceback, warnings
from pathlib import Path

_, rounds, *scripts = sys.argv
for script in scripts:
    sys.stdout.flush()
    for number, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{Path(script).stem}.{end}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.argv = [script, rounds]
    levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    try:
        with warnings.catch_warnings():
            runpy.run_path(script, run_name="__main__")
    except BaseException:
        traceback.print_exc()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the output of every script that is not slow, `NAME.out` and `NAME.err`, from one process."""
    folder = tmp_path_factory.mktemp("examples")
    quick = [str(script) for script in SCRIPTS if script.stem not in _SLOW]
    command = [sys.executable, "-c", _ONE_AFTER_ANOTHER, _ROUNDS, *quick]
    # Its files take as long as a short run itself, and other tests look at them.
    subprocess.run(command, cwd=folder, env=os.environ | {"WANDB_MODE": "disabled"}, timeout=280, check=True)
    return folder


@pytest.mark.corner
@pytest.mark.parametrize("name", [script.stem for script in SCRIPTS if script.stem not in _SLOW])
def test_example_runs_quietly(name: str, printed: Path) -> None:
    assert (printed / f"{name}.err").read_text() == ""
    assert _PRINTS[name] in (printed / f"{name}.out").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", _SLOW)
def test_long_example_runs_quietly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), _ROUNDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert _PRINTS[name] in done.stdout
