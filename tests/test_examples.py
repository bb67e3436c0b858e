"""Every script of examples/ runs as its first lines say, is short, and complains of nothing."""

import ast
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


@pytest.mark.parametrize(
    "script",
    [pytest.param(each, marks=pytest.mark.slow if each.stem in _SLOW else [], id=each.stem) for each in SCRIPTS],
)
def test_example_runs_quietly(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its files take as long as a short run itself, and other tests look at them.
    monkeypatch.setenv("WANDB_MODE", "disabled")
    done = subprocess.run([sys.executable, str(script), _ROUNDS], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert _PRINTS[script.stem] in done.stdout
