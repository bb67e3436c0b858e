"""The subcommands of `fedhq`, a module for each group. None imports anything heavy before it is run."""

from fedhq_lightning.cli import measuring, models, recipes, run, shell

GROUPS = (recipes, run, models, measuring, shell)
"""In the order of `fedhq --help`. Each has `add(add_command)`."""

__all__ = ["GROUPS"]
