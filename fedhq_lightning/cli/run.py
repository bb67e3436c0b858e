"""`fedhq run` and `resume`."""

from __future__ import annotations

import argparse
import shlex
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fedhq_lightning.cli import completers
from fedhq_lightning.cli.parser import AddCommand, completed_by, find_own_modules, is_first_process, naming
from fedhq_lightning.cli.recipes import add_recipe
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.support.setup_notice import clear_notice, setting_up

if TYPE_CHECKING:
    from fedhq_lightning.trainer import FederatedTrainer

_RUN_EPILOG = """examples:
  fedhq run digits-smoke                                       a shipped recipe (fedhq ls)
  fedhq run mine.yaml                                          a file of your own
  fedhq run digits-smoke --trainer.max_rounds=5 --model.lr=0.05
  fedhq run digits-smoke --trainer.devices=2                   with two processes
  fedhq run digits-smoke --trainer.logger=false                without Weights & Biases

fedhq show NAME lists the keys of a recipe. A class of your own is named by its class_path; modules in the current
directory are found. The run leaves model, report and records in runs/NAME/.
"""
_RESUME_EPILOG = """examples:
  fedhq resume runs/digits-smoke/20250131-120000-0a1b2c
  fedhq resume runs/digits-smoke/20250131-120000-0a1b2c --trainer.devices=2

The run goes on from its last checkpoint, with its own recipe.yaml, to the same bits as without the stop. Only values
that change no bit can be given, such as trainer.devices.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommands."""
    add_recipe(add_command("run", _run, "Run a recipe; --KEY=VALUE changes a value.", _RUN_EPILOG))
    resume = add_command("resume", _resume, "Go on with a run that was stopped.", _RESUME_EPILOG)
    text = "the directory of the run, or a checkpoint in it"
    completed_by(resume.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=text), completers.run_directories)


def _run(known: argparse.Namespace, rest: list[str]) -> None:
    name, text = recipe_files.find(known.recipe)
    _fit(f"recipe {name}", name, text, rest)


def _resume(known: argparse.Namespace, rest: list[str]) -> None:
    given: Path = known.run_dir
    run_dir = given.parent.parent if given.suffix == ".ckpt" else given
    recipe = run_dir / "recipe.yaml"
    if not recipe.is_file():
        found = "no recipe.yaml there" if run_dir.is_dir() else "no such folder"
        raise ConfigurationError(f"resume {run_dir}: {found}; give the directory of a run, such as runs/RECIPE/RUN")
    text = recipe_files.read(recipe)
    if text.startswith(recipe_files.STARTED_FROM_PYTHON):
        raise ConfigurationError(
            f"resume {run_dir}: this run was started from Python; go on there with "
            f"trainer.fit(module, datamodule, ckpt_path={str(run_dir)!r})"
        )
    _fit(f"resume {run_dir}", run_dir.resolve().parent.name, text, rest, given)


def _fit(subject: str, name: str, text: str, overrides: list[str], ckpt_path: Path | None = None) -> None:
    find_own_modules()
    with naming(subject), setting_up(name) if is_first_process() else nullcontext():
        from fedhq_lightning.launch.resolve import resolve

        resolved = resolve(name, text, overrides)
        with resolved.keys_named():
            trainer, model, data = resolved.instantiate()
            if not trainer.described["enable_progress_bar"]:
                clear_notice()  # nothing else would, before the end
            try:
                trainer.fit(model, data, ckpt_path)
            except KeyboardInterrupt:
                # Ctrl-C reaches every process, but a signal to the first one alone does not.
                for process in getattr(trainer.fabric.strategy.launcher, "procs", []):
                    process.send_signal(signal.SIGINT)
                raise KeyboardInterrupt(_how_to_go_on(trainer)) from None
    if trainer.is_global_zero:
        from fedhq_lightning.report.final_table import print_final

        print_final(trainer.summary)
        print(f"model, report and records: {trainer.run_dir}")
    left_out = trainer.summary["late"] + trainer.summary["quarantined"]
    if left_out and left_out == sum(trainer.summary["mode_counts"].values()):
        raise ConfigurationError(
            "no update was ever used, so the model is the initial one; rounds.jsonl has the reason of each, and the "
            "loss, the learning rate and round_deadline are where to look"
        )


def _how_to_go_on(trainer: FederatedTrainer) -> str:
    if any((trainer.run_dir / "checkpoints").glob("round-*.ckpt")):
        return f"; go on with: fedhq resume {shlex.quote(str(trainer.run_dir))}"
    return " before the first checkpoint: there is nothing to resume"
