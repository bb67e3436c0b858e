"""`fedhq completion`, and what `fedhq` alone shows."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedhq_lightning.cli.parser import AddCommand
from fedhq_lightning.cli.word_wrap import columns, terminal_width
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.run.run_names import RunName, run_called
from fedhq_lightning.version import __version__

_SHELLS = ("bash", "zsh", "fish")
_EPILOG = """examples:
  eval "$(fedhq completion bash)"                                    in this shell; in every one: put it into ~/.bashrc
  eval "$(fedhq completion zsh)"                                     likewise ~/.zshrc, after compinit
  fedhq completion fish > ~/.config/fish/completions/fedhq.fish

Completes commands, options, recipes, run directories and models, and after --: keys of the recipe and their values.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    command = add_command(
        "completion", _print_script, "Print a script that completes words with Tab.", _EPILOG, takes_overrides=False
    )
    command.add_argument("shell", metavar="SHELL", choices=_SHELLS, help=", ".join(_SHELLS))


def _print_script(known: argparse.Namespace, rest: list[str]) -> None:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["fedhq"], shell=known.shell))


def next_steps() -> str:
    """What to do next, by what is in `runs/`: a first run, or the latest run's model, report or rest."""
    steps = [
        ("fedhq run digits-smoke", "a first run: scikit-learn's digits, 3 rounds, seconds, no download"),
        ("fedhq ls", "the other shipped recipes"),
        ("fedhq cp mnist5k-hybrid mine.yaml", "one of them as a file of your own; then: fedhq run mine.yaml"),
    ]
    latest = max(Path("runs").glob("*/*/recipe.yaml"), key=lambda file: file.stat().st_mtime, default=None)
    if latest is not None:
        run = _shown(latest.parent)
        if (latest.parent / "model").is_dir():
            steps[0] = (f"fedhq eval {run}", "the latest run's model, measured here")
            steps[1:1] = [
                (f"fedhq report {run}", "its report.html, written anew"),
                ("fedhq runs", "all runs, the newest first"),
            ]
        elif (latest.parent / "summary.json").is_file():
            steps[0] = (f"fedhq report {run}", "why the latest run has no model, in its report.html")
        elif _is_of_recipe(latest):
            steps[0] = (f"fedhq resume {run}", "the latest run, which has not ended: go on with it")
    steps.append(("fedhq --help", "all commands; fedhq COMMAND --help has examples of each"))
    steps.append(('eval "$(fedhq completion bash)"', "words completed by Tab; zsh and fish too"))
    lines = columns([(f"  {step}", words) for step, words in steps], terminal_width())
    return "\n".join([f"fedhq {__version__}: federated learning with hybrid quantization. What next?", "", *lines])


def _shown(run: Path) -> str:
    """Its name or id where that tells it from the others, else its folder."""
    parts = RunName.of(run.name)
    try:
        return parts.shown if parts and run_called(Path(parts.shown)) == run else str(run)
    except ConfigurationError:
        return str(run)


def _is_of_recipe(file: Path) -> bool:
    """Whether a run can be resumed from the command line: not one that was started from Python, nor a damaged one."""
    try:
        return not recipe_files.read(file).startswith(recipe_files.STARTED_FROM_PYTHON)
    except ConfigurationError:
        return False
