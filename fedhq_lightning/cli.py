"""`fedhq`: list, copy, show, run and resume recipes. Torch is imported only by what needs it."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhq_lightning import recipe_files
from fedhq_lightning.errors import ConfigurationError, nearest

_EPILOG = """examples:
  fedhq ls                                          shipped recipes
  fedhq run mnist5k-hybrid                          run one
  fedhq run mnist5k-hybrid --trainer.max_rounds=5   with another value
  fedhq cp mnist5k-hybrid mine.yaml                 copy one to edit; then: fedhq run mine.yaml
  fedhq resume runs/mnist5k-hybrid/RUN              go on where a run was stopped
"""
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0; 2 for something that the user can mend; 130 after Ctrl-C.
    """
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    if known.command is None:
        parser.print_help()
        return 0
    try:
        if rest and not known.takes_overrides:
            raise ConfigurationError(f"fedhq {known.command}: unknown argument {rest[0]!r}; see fedhq --help")
        known.function(known, rest)
    except ConfigurationError as error:
        if known.debug:
            raise
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fedhq",
        description="Federated learning with hybrid quantization.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, function: Any, help_text: str, takes_overrides: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(function=function, takes_overrides=takes_overrides)
        return command

    add("ls", _list, "List the shipped recipes.")
    copy = add("cp", _copy, "Copy a shipped recipe to a file of your own.")
    copy.add_argument("recipe", metavar="NAME")
    copy.add_argument("file", metavar="FILE", nargs="?", help="default: NAME.yaml")
    show = add("show", _show, "Print a recipe with every default filled in; --KEY=VALUE changes a value.", True)
    show.add_argument("recipe", metavar="NAME|FILE")
    run = add("run", _run, "Run a recipe; --KEY=VALUE, such as --trainer.max_rounds=5, changes a value.", True)
    run.add_argument("recipe", metavar="NAME|FILE")
    resume = add("resume", _resume, "Go on with a run that was stopped.")
    resume.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        if "invalid choice" in message:
            word = message.split("'")[1]
            commands = ("ls", "cp", "show", "run", "resume")
            message = f"unknown command {word!r}; allowed are {', '.join(commands)}{nearest(word, commands)}"
        _complain(message)
        raise SystemExit(2)


def _list(known: argparse.Namespace, rest: list[str]) -> None:
    recipes = recipe_files.shipped()
    width = max(map(len, recipes))
    for name, file in recipes.items():
        print(f"{name:<{width}}  {recipe_files.description(file.read_text(encoding='utf-8'))}")


def _copy(known: argparse.Namespace, rest: list[str]) -> None:
    _, text = recipe_files.find(known.recipe)
    target = Path(known.file or f"{known.recipe}.yaml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(f"{target} is there already; name another file, or remove it") from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}") from error
    print(f"{target} written; run it with: fedhq run {target}")


def _show(known: argparse.Namespace, rest: list[str]) -> None:
    name, text = recipe_files.find(known.recipe)
    _quiet()
    from fedhq_lightning.recipe_parsing import resolve

    print(resolve(name, text, rest).recipe.text, end="")


def _run(known: argparse.Namespace, rest: list[str]) -> None:
    name, text = recipe_files.find(known.recipe)
    _fit(name, text, rest)


def _resume(known: argparse.Namespace, rest: list[str]) -> None:
    recipe = known.run_dir / "recipe.yaml"
    if not recipe.is_file():
        raise ConfigurationError(f"{known.run_dir}: no recipe.yaml there; give the directory of a run")
    _fit(known.run_dir.resolve().parent.name, recipe.read_text(encoding="utf-8"), [], known.run_dir)


def _fit(name: str, text: str, overrides: list[str], ckpt_path: Path | None = None) -> None:
    _quiet()
    from fedhq_lightning.recipe_parsing import resolve

    trainer, model, data = resolve(name, text, overrides).instantiate()
    try:
        trainer.fit(model, data, ckpt_path)
    except KeyboardInterrupt:
        if trainer.is_global_zero and trainer.run_dir != trainer.default_root_dir:
            _complain(f"go on with: fedhq resume {trainer.run_dir}")
        raise
    if trainer.is_global_zero:
        from fedhq_lightning.tables import print_final

        print_final(trainer.summary)
        print(f"model, report and records: {trainer.run_dir}")


def _quiet() -> None:
    """Warnings as one line each, and none from libraries: what a user cannot act on is noise."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"fedhq_lightning")
    warnings.filterwarnings("default", module=r"lightning\.fabric\.utilities\.rank_zero", category=UserWarning)
    warnings.showwarning = lambda message, *_, **__: _complain(f"warning: {message}")


def _complain(message: str) -> None:
    """Print to stderr, once however many processes run."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"fedhq: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
