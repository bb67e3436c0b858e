"""`fedhq run`, and what `fedhq resume` shares with it."""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedhq_lightning.cli.parser import AddCommand, complain, find_own_modules, naming
from fedhq_lightning.cli.recipes import add_recipe
from fedhq_lightning.errors import RunError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.support.first_process import is_first_process
from fedhq_lightning.support.phase_clock import PhaseClock
from fedhq_lightning.support.quiet import nobody_reads, say_line
from fedhq_lightning.support.setup_notice import clear_notice, setting_up
from fedhq_lightning.support.signals import NOTHING_TO_RESUME

if TYPE_CHECKING:
    from fedhq_lightning.trainer import FederatedTrainer

_EPILOG = """examples:
  fedhq run digits-smoke                                       a shipped recipe (fedhq ls)
  fedhq run mine.yaml                                          a file of your own
  fedhq run digits-smoke --trainer.max_rounds=5 --model.lr=0.05
  fedhq run digits-smoke --trainer.devices=2                   with two processes
  fedhq run digits-smoke --name first-try                      called so in lists, pages and at Weights & Biases
  fedhq run digits-smoke --trainer.logger=false                without Weights & Biases

fedhq show NAME lists the keys of a recipe. A class of your own is named by its class_path; modules in the current
directory are found. The run leaves model, report and records in runs/NAME/.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    command = add_command("run", _run, "Run a recipe; --KEY=VALUE changes a value.", _EPILOG)
    command.add_argument("--name", metavar="NAME", help="what the run is called; the same as --trainer.name")
    add_recipe(command)


def _run(known: argparse.Namespace, rest: list[str]) -> None:
    name, text = recipe_files.find(known.recipe)
    named = [] if known.name is None else [f"--trainer.name={known.name}"]
    fit_recipe(f"recipe {name}", name, text, [*rest, *named], known.began)


def fit_recipe(
    subject: str, name: str, text: str, overrides: list[str], began: float, ckpt_path: Path | None = None
) -> None:
    """Train what a recipe says, and show the result.

    Args:
        subject: What an error message begins with.
        name: The recipe's.
        text: Of the recipe.
        overrides: `--KEY=VALUE`.
        began: When the command did, by `time.perf_counter`.
        ckpt_path: Run directory or checkpoint to go on from.

    Raises:
        ConfigurationError: What `FederatedTrainer.fit` refuses.
    """
    find_own_modules()
    with naming(subject), setting_up(name) if is_first_process() else nullcontext():
        from fedhq_lightning.launch.resolve import resolve

        clock = PhaseClock("start", began)
        resolved = resolve(name, text, overrides)
        with resolved.keys_named():
            trainer, model, data = resolved.instantiate()
            trainer.command_clock = clock
            if not trainer.described["enable_progress_bar"]:
                clear_notice()  # nothing else would, before the end
            try:
                trainer.fit(model, data, ckpt_path)
            except KeyboardInterrupt as interruption:
                interruption.args = (_how_to_go_on(trainer),)
                raise
            except BrokenPipeError:
                if nobody_reads():
                    with suppress(BrokenPipeError):  # of the other stream
                        complain(f"nobody reads the output any more{_how_to_go_on(trainer)}")
                raise
            except RunError as error:
                report = trainer.run_dir / "report.html"
                more = f"; the report tells more: {report}" if trainer.summary else ""
                how = _how_to_go_on(trainer, "; there is no checkpoint to go on from")
                error.args = (f"{error}{more}{how}",)
                raise
    if trainer.is_global_zero:
        from fedhq_lightning.report.final_table import print_final

        print_final(trainer.summary)
        say_line(f"model, report and records: {trainer.run_dir}", sys.stdout)


def _how_to_go_on(trainer: FederatedTrainer, otherwise: str = NOTHING_TO_RESUME) -> str:
    if any((trainer.run_dir / "checkpoints").glob("round-*.ckpt")):
        return f"; go on with: fedhq resume {shlex.quote(str(trainer.run_dir))}"
    return otherwise
