"""`fedhq resume`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedhq_lightning.cli import completers
from fedhq_lightning.cli.parser import AddCommand, completed_by, path
from fedhq_lightning.cli.run import fit_recipe
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.run.run_names import run_called

_EPILOG = """examples:
  fedhq resume runs/digits-smoke/20250131-120000-0a1b2c
  fedhq resume first-try                                                             by the name that --name gave
  fedhq resume runs/digits-smoke/20250131-120000-0a1b2c --trainer.devices=2
  fedhq resume runs/digits-smoke/20250131-120000-0a1b2c --trainer.max_rounds=40      make it longer

The run goes on from its last checkpoint, with its own recipe.yaml, to the same bits as without the stop. Only values
that change no bit can be given, such as trainer.devices, and trainer.max_rounds: with more of them a run that has ended
goes on too, and one line says where it is not the run that it would have been with as many from the start.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    resume = add_command("resume", _resume, "Go on with a run that was stopped, or make one longer.", _EPILOG)
    text = "the directory of the run, its name (fedhq runs), or a checkpoint in it"
    completed_by(resume.add_argument("run_dir", metavar="RUN_DIR", type=path, help=text), completers.run_directories)


def _resume(known: argparse.Namespace, rest: list[str]) -> None:
    if any(each.partition("=")[0] == "--trainer.name" for each in rest):
        raise ConfigurationError(
            f"resume {known.run_dir}: --trainer.name: a run keeps the name that it began with; leave it out"
        )
    given: Path = run_called(known.run_dir)
    run_dir = recipe_files.run_of(given)
    recipe = run_dir / "recipe.yaml"
    if not recipe.is_file():
        raise ConfigurationError(f"resume {run_dir}: {recipe_files.why_no_run(run_dir)}")
    text = recipe_files.read(recipe)
    if text.startswith(recipe_files.STARTED_FROM_PYTHON):
        raise ConfigurationError(
            f"resume {run_dir}: this run was started from Python; go on there with "
            f"trainer.fit(module, datamodule, ckpt_path={str(run_dir)!r})"
        )
    fit_recipe(f"resume {run_dir}", run_dir.resolve().parent.name, text, rest, known.began, given)
