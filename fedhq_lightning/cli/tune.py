"""`fedhq tune`."""

from __future__ import annotations

import argparse

from fedhq_lightning.cli.parser import AddCommand, find_own_modules, naming
from fedhq_lightning.cli.recipes import add_recipe
from fedhq_lightning.recipe import files as recipe_files

_EPILOG = """examples:
  fedhq tune digits-tune                                    the search that the recipe's tune section describes
  fedhq tune mine.yaml --search search.yaml --trials 50     or a file of its own
  fedhq tune mine.yaml --workers 2                          two processes share the trials
  fedhq tune mine.yaml --storage runs/mine/TUNE             go on with a study, or join it from a second terminal
  fedhq tune mine.yaml --storage sqlite:///study.db         any storage that Optuna knows
  fedhq tune mine.yaml --trainer.max_rounds=5               with another value, for every trial

The study leaves trials.csv, a plot, best.yaml (ready for fedhq run) and every trial's run in
runs/NAME/tune-TIME-ID/.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    text = "Search for better values of a recipe, by a study over whole runs."
    command = add_command("tune", _tune, text, _EPILOG)
    command.add_argument("--search", metavar="FILE", help="what to search; default: the recipe's tune section")
    command.add_argument("--trials", metavar="N", type=int, help="trials of the study in all, those done included")
    command.add_argument("--workers", metavar="N", type=int, default=1, help="processes that run trials; default 1")
    command.add_argument(
        "--storage", metavar="PATH|URL", help="the study: a tune folder, a journal file or a database's URL"
    )
    add_recipe(command)


def _tune(known: argparse.Namespace, rest: list[str]) -> None:
    name, _ = recipe_files.find(known.recipe)
    find_own_modules()
    with naming(f"recipe {name}"):
        from fedhq_lightning.experiments.run_study import tune_recipe

        tune_recipe(known.recipe, rest, known.search, known.trials, known.workers, known.storage)
