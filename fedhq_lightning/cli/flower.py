"""`fedhq flower`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from fedhq_lightning.cli.parser import AddCommand, find_own_modules, naming, path
from fedhq_lightning.cli.recipes import add_recipe
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.support.quiet import say_line

_EPILOG = """examples:
  fedhq flower digits-smoke                                 write the app digits-smoke-flower/
  fedhq flower mine.yaml my-app --trainer.max_rounds=5      under another name, with another value
  flwr run digits-smoke-flower local --stream               run it: local is a SuperLink of Flower's configuration

The clients of a Flower app train on nodes of their own, over a network; docs/remote.md has the commands for three of
them. What a node trains with is the client of the recipe's data whose place --node-config 'partition-id=0' says.
Settings that do not work with clients on nodes yet are refused here. Modules of your own go into the app's folder.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    command = add_command("flower", _write, "Write a Flower app of a recipe: its clients on nodes.", _EPILOG)
    add_recipe(command)
    command.add_argument(
        "folder", metavar="DIR", type=path, nargs="?", help="a new folder; default: NAME-flower in this one"
    )


def _write(known: argparse.Namespace, rest: list[str]) -> None:
    name, text = recipe_files.find(known.recipe)
    folder = known.folder or Path(f"{name}-flower")
    find_own_modules()
    with naming(f"recipe {name}"):
        from fedhq_lightning.flower.app_folder import write_app
        from fedhq_lightning.flower.checks import check_can_travel
        from fedhq_lightning.launch.resolve import as_written, resolve

        trainer, _, _ = resolve(name, text, rest).instantiate()
        check_can_travel(trainer.settings, trainer.described)
        runs = Path(os.path.abspath(trainer.default_root_dir))
        write_app(folder, name, as_written(text, rest), runs)
    say_line(f"{folder} written; run it with: flwr run {shlex.quote(str(folder))} SUPERLINK --stream", sys.stdout)
