"""The subcommands of `fedhq`, a module for each group. None imports anything heavy before it is run."""

from fedhq_lightning.commands import measuring, models, recipes, running, shell

GROUPS = (recipes, running, models, measuring, shell)
"""In the order of `fedhq --help`. Each has `add(add_command)`."""

__all__ = ["GROUPS"]
