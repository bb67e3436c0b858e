"""The subcommands of `fedhq`, a file for each. None imports anything heavy before it is run."""

from fedhq_lightning.cli import compare, eval, export, flower, profile, recipes, report, resume, run, runs, shell, tune

COMMANDS = (recipes, run, runs, resume, eval, export, report, profile, tune, compare, flower, shell)
"""In the order of `fedhq --help`. Each has `add(add_command)`; `recipes` adds `ls`, `cp` and `show`."""

__all__ = ["COMMANDS"]
