"""`fedhq profile`."""

from __future__ import annotations

import argparse

from fedhq_lightning.cli.parser import AddCommand, find_own_modules, naming
from fedhq_lightning.cli.recipes import add_recipe
from fedhq_lightning.recipe import files as recipe_files

_EPILOG = """examples:
  fedhq profile digits-smoke                          what each lane and layer takes here
  fedhq profile digits-smoke --trainer.threads=2      with another value
  fedhq profile digits-smoke --write                  write digits-smoke.yaml here, with the faster kernels
  fedhq profile mine.yaml --write                     put them into a file of your own

Which kernel computes a layer is a static rule, so that a run's bits depend on no timing. --write freezes another
choice, as trainer.lanes.layer_kernels, where it was measured to be more than 10 % faster. Values given on the command
line are measured, but not written. Nothing else is left: no run, no log.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    profile = add_command("profile", _profile, "Measure a recipe's lanes and kernels on this host.", _EPILOG)
    profile.add_argument("--write", action="store_true", help="freeze faster kernels in the recipe")
    add_recipe(profile)


def _profile(known: argparse.Namespace, rest: list[str]) -> None:
    name, _ = recipe_files.find(known.recipe)
    find_own_modules()
    with naming(f"recipe {name}"):
        from fedhq_lightning.cli.profile_recipe import profile_recipe

        profile_recipe(known.recipe, rest, known.write)
