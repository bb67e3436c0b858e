"""`fedhq ls`, `cp` and `show`: recipes, looked at and copied."""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

from fedhq_lightning.cli import completers
from fedhq_lightning.cli.parser import AddCommand, complain, completed_by, find_own_modules, naming, path
from fedhq_lightning.cli.word_wrap import columns, terminal_width
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.support.quiet import say_line

_LS_EPILOG = """example:
  fedhq ls
"""
_CP_EPILOG = """examples:
  fedhq cp digits-smoke              write digits-smoke.yaml here
  fedhq cp digits-smoke mine.yaml    under another name; then: fedhq run mine.yaml
"""
_SHOW_EPILOG = """examples:
  fedhq show digits-smoke                          every key with its value, defaults included
  fedhq show digits-smoke --trainer.scheme=w8a8    with another value
  fedhq show digits-smoke > mine.yaml              the whole of it as a recipe of your own
  fedhq show mine.yaml --trust                     with the defaults of classes of your own

Nothing of a recipe is run, and no module imported but this package's, torch's, Lightning's and torchmetrics'. --trust
imports the others that it names, which runs their code; modules in the current directory are found.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommands."""
    add_command("ls", _list, "List the shipped recipes.", _LS_EPILOG, takes_overrides=False)
    copy = add_command("cp", _copy, "Copy a shipped recipe to a file of your own.", _CP_EPILOG, takes_overrides=False)
    completed_by(copy.add_argument("recipe", metavar="NAME", help="a shipped recipe"), completers.shipped_recipes)
    copy.add_argument(
        "file", metavar="FILE", type=path, nargs="?", help="default: NAME.yaml; an existing file is left alone"
    )
    show = add_command("show", _show, "Print a recipe with every default filled in; it can be run.", _SHOW_EPILOG)
    add_recipe(show)
    show.add_argument("--trust", action="store_true", help="import whatever it names, which runs that code")


def add_recipe(command: argparse.ArgumentParser, nargs: str | None = None, default: str = "") -> None:
    """The argument that names a recipe; `default` says what happens without one."""
    text = "a shipped recipe, or a file that ends in .yaml" + (f"; default: {default}" if default else "")
    completed_by(command.add_argument("recipe", metavar="NAME|FILE", nargs=nargs, help=text), completers.recipes)


def _list(known: argparse.Namespace, rest: list[str]) -> None:
    recipes = recipe_files.shipped()
    rows = [(name, recipe_files.description(file.read_text(encoding="utf-8"))) for name, file in recipes.items()]
    for line in columns(rows, terminal_width()):
        say_line(line, sys.stdout)


def _copy(known: argparse.Namespace, rest: list[str]) -> None:
    name, text = recipe_files.find(known.recipe)
    target = known.file or Path(f"{name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(f"{target} is there already; name another file, or remove it") from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}; name another file") from error
    say_line(f"{target} written; run it with: fedhq run {shlex.quote(str(target))}", sys.stdout)


def _show(known: argparse.Namespace, rest: list[str]) -> None:
    name, text = recipe_files.find(known.recipe)
    if known.trust:
        find_own_modules()
    with naming(f"recipe {name}"):
        from fedhq_lightning.launch.import_policy import UntrustedImportError, only_trusted_imports
        from fedhq_lightning.launch.resolve import as_written, resolve

        try:
            with nullcontext() if known.trust else only_trusted_imports():
                resolved = resolve(name, text, rest)
        except UntrustedImportError as error:
            complain(f"recipe {name}: {error}, so defaults are missing; --trust imports it, and so runs its code")
            _put_out(as_written(text, rest))
            return
        resolved.check_trainer()
        _put_out(resolved.recipe.text)


def _put_out(text: str) -> None:
    """Show a recipe on a terminal; into a file it goes as it is, and like all files as UTF-8."""
    if sys.stdout.isatty():
        say_line(text.removesuffix("\n"), sys.stdout)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
