"""`fedhq eval`."""

from __future__ import annotations

import argparse

from fedhq_lightning.cli import completers
from fedhq_lightning.cli.parser import AddCommand, completed_by, find_own_modules, naming, path
from fedhq_lightning.cli.recipes import add_recipe

_EPILOG = """examples:
  fedhq eval runs/digits-smoke/20250131-120000-0a1b2c                 on the data of the run's own recipe
  fedhq eval runs/digits-smoke/20250131-120000-0a1b2c/model/model.pt2
  fedhq eval model.pt2 digits-smoke                                   a model on its own, with a recipe
  fedhq eval runs/digits-smoke/20250131-120000-0a1b2c --trainer.threads=2

Metrics of the deployed model and of its float32 weights on the recipe's held-out data, the wall time of one forward on
this host's CPU, and bytes. Nothing is written.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    evaluate = add_command("eval", _eval, "Evaluate a deployed model beside its float32 weights.", _EPILOG)
    text = "a run's directory or name, its model/ folder, or a .pt2 file"
    completed_by(evaluate.add_argument("model", metavar="MODEL", type=path, help=text), completers.models)
    evaluate.add_argument("--trust", action="store_true", help="load a .pt2 file even if it may run code of its author")
    add_recipe(evaluate, nargs="?", default="the recipe of the run")


def _eval(known: argparse.Namespace, rest: list[str]) -> None:
    find_own_modules()
    with naming(f"eval {known.model}"):
        from fedhq_lightning.cli.evaluate_model import evaluate_model
        from fedhq_lightning.run.run_names import run_called

        evaluate_model(run_called(known.model), known.recipe, rest, known.trust)
