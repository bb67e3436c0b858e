"""`fedhq`: list, copy, show, profile, run and resume recipes. Torch is imported only by what needs it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedhq_lightning import __version__, recipe_files
from fedhq_lightning.comparing import arguments as comparing_arguments
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.tuning import arguments as tuning_arguments

if TYPE_CHECKING:
    from fedhq_lightning.trainer import FederatedTrainer

_EPILOG = """examples:
  fedhq ls                                          the shipped recipes
  fedhq run mnist5k-hybrid                          run one
  fedhq run mnist5k-hybrid --trainer.max_rounds=5   with another value
  fedhq cp mnist5k-hybrid mine.yaml                 copy one to edit; then: fedhq run mine.yaml
  fedhq resume runs/mnist5k-hybrid/RUN              go on where a run was stopped
  fedhq profile mnist5k-hybrid                      measure its lanes and kernels on this host
  fedhq tune digits-tune                            search for better values by an Optuna study over whole runs
  fedhq compare digits-smoke --allocators all-ptq all-qat free-qat

fedhq COMMAND --help tells more.
"""
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
"""
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
_PROFILE_EPILOG = """examples:
  fedhq profile digits-smoke                          what each lane and layer takes here
  fedhq profile digits-smoke --trainer.threads=2      with another value
  fedhq profile digits-smoke --write                  write digits-smoke.yaml here, with the faster kernels
  fedhq profile mine.yaml --write                     put them into a file of your own

Which kernel computes a layer is a static rule, so that a run's bits depend on no timing. --write freezes another
choice, as trainer.lanes.layer_kernels, where it was measured to be more than 10 % faster. Values given on the command
line are measured, but not written. Nothing else is left: no run, no log.
"""
_COMMANDS = ("ls", "cp", "show", "run", "resume", "profile", "tune", "compare")
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: Those of the command line unless given.

    Returns:
        0; 2 for something that the user can mend; 130 after Ctrl-C.
    """
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    if known.command is None and not rest:
        parser.print_help()
        return 0
    try:
        if rest and not (known.command and known.takes_overrides):
            command = f"fedhq {known.command}" if known.command else "fedhq"
            raise ConfigurationError(f"unknown argument {rest[0]!r}; see {command} --help")
        with warnings.catch_warnings():
            _show_own_warnings()
            known.function(known, rest)
    except ConfigurationError as error:
        if known.debug:
            traceback.print_exception(error)
        else:
            _complain(str(error))
        return 2
    except KeyboardInterrupt as interruption:
        if not _is_first_process():
            # A failure here would make Lightning kill the first process, which may still be closing its files; and
            # the first passes the interruption on, which may be the second one to arrive.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            return 0
        _complain(f"interrupted{interruption}")
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
    parser.add_argument("--version", action="version", version=f"fedhq_lightning {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, function: Callable[..., None], help_text: str, epilog: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help_text,
            description=help_text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # Suppressed, or the default here would undo `fedhq --debug COMMAND`.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        command.set_defaults(function=function, takes_overrides=name not in ("ls", "cp"))
        return command

    add("ls", _list, "List the shipped recipes.", _LS_EPILOG)
    copy = add("cp", _copy, "Copy a shipped recipe to a file of your own.", _CP_EPILOG)
    copy.add_argument("recipe", metavar="NAME", help="a shipped recipe")
    copy.add_argument("file", metavar="FILE", nargs="?", help="default: NAME.yaml; an existing file is left alone")
    show = add("show", _show, "Print a recipe with every default filled in; it can be run.", _SHOW_EPILOG)
    run = add("run", _run, "Run a recipe; --KEY=VALUE changes a value.", _RUN_EPILOG)
    resume = add("resume", _resume, "Go on with a run that was stopped.", _RESUME_EPILOG)
    resume.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the directory of the run, or a checkpoint in it")
    profile = add("profile", _profile, "Measure a recipe's lanes and kernels on this host.", _PROFILE_EPILOG)
    profile.add_argument("--write", action="store_true", help="freeze faster kernels in the recipe")
    tune = add(
        "tune", _tune, "Search for better values of a recipe, by a study over whole runs.", tuning_arguments.EPILOG
    )
    tuning_arguments.add_arguments(tune)
    compare = add(
        "compare", _compare, "Put allocators side by side on a recipe, over seeds.", comparing_arguments.EPILOG
    )
    comparing_arguments.add_arguments(compare)
    for command in (show, run, profile, tune, compare):
        command.add_argument("recipe", metavar="NAME|FILE", help="a shipped recipe, or a file that ends in .yaml")
    for command in (show, run, resume, profile, tune, compare):
        command.usage = f"{command.format_usage().removeprefix('usage: ').strip()} [--KEY=VALUE ...]"
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message:
            word = message.split("'")[1]
            message = f"unknown command {word!r}; allowed are {', '.join(_COMMANDS)}{nearest(word, _COMMANDS)}"
        else:
            message = f"{message}; see {self.prog} --help"
        _complain(message)
        raise SystemExit(2)


def _list(known: argparse.Namespace, rest: list[str]) -> None:
    recipes = recipe_files.shipped()
    width = max(map(len, recipes))
    for name, file in recipes.items():
        print(f"{name:<{width}}  {recipe_files.description(file.read_text(encoding='utf-8'))}")


def _copy(known: argparse.Namespace, rest: list[str]) -> None:
    name, text = recipe_files.find(known.recipe)
    target = Path(known.file or f"{name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(f"{target} is there already; name another file, or remove it") from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}; name another file") from error
    print(f"{target} written; run it with: fedhq run {target}")


def _show(known: argparse.Namespace, rest: list[str]) -> None:
    name, text = recipe_files.find(known.recipe)
    _find_own_modules()
    with _naming(f"recipe {name}"):
        from fedhq_lightning.recipe_parsing import resolve

        print(resolve(name, text, rest).recipe.text, end="")


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
    if recipe.read_text(encoding="utf-8").startswith(recipe_files.STARTED_FROM_PYTHON):
        raise ConfigurationError(
            f"resume {run_dir}: this run was started from Python; go on there with "
            f"trainer.fit(module, datamodule, ckpt_path={str(run_dir)!r})"
        )
    _fit(f"resume {run_dir}", run_dir.resolve().parent.name, recipe.read_text(encoding="utf-8"), rest, given)


def _profile(known: argparse.Namespace, rest: list[str]) -> None:
    name, _ = recipe_files.find(known.recipe)
    _find_own_modules()
    with _naming(f"recipe {name}"):
        from fedhq_lightning.profile_command import profile_recipe

        profile_recipe(known.recipe, rest, known.write)


def _tune(known: argparse.Namespace, rest: list[str]) -> None:
    name, _ = recipe_files.find(known.recipe)
    _find_own_modules()
    with _naming(f"recipe {name}"):
        from fedhq_lightning.tuning.command import tune_recipe

        tune_recipe(known.recipe, rest, known.search, known.trials, known.workers, known.storage)


def _compare(known: argparse.Namespace, rest: list[str]) -> None:
    name, _ = recipe_files.find(known.recipe)
    _find_own_modules()
    with _naming(f"compare {name}"):
        from fedhq_lightning.comparing.command import compare_recipe

        compare_recipe(known, rest)


def _fit(subject: str, name: str, text: str, overrides: list[str], ckpt_path: Path | None = None) -> None:
    _find_own_modules()
    with _naming(subject):
        from fedhq_lightning.recipe_parsing import resolve

        resolved = resolve(name, text, overrides)
        with resolved.keys_named():
            trainer, model, data = resolved.instantiate()
            try:
                trainer.fit(model, data, ckpt_path)
            except KeyboardInterrupt:
                # Ctrl-C reaches every process, but a signal to the first one alone does not.
                for process in getattr(trainer.fabric.strategy.launcher, "procs", []):
                    process.send_signal(signal.SIGINT)
                raise KeyboardInterrupt(_how_to_go_on(trainer)) from None
    if trainer.is_global_zero:
        from fedhq_lightning.reporting.tables import print_final

        print_final(trainer.summary)
        print(f"model, report and records: {trainer.run_dir}")


def _how_to_go_on(trainer: FederatedTrainer) -> str:
    if any((trainer.run_dir / "checkpoints").glob("round-*.ckpt")):
        return f"; go on with: fedhq resume {trainer.run_dir}"
    return " before the first checkpoint: there is nothing to resume"


@contextmanager
def _naming(subject: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{subject}: {error}") from error


def _find_own_modules() -> None:
    """Let class paths name modules in the current directory, after everything that is installed."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def _show_own_warnings() -> None:
    """Warnings as one line each, and none from libraries: what a user cannot act on is noise."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"fedhq_lightning")
    warnings.filterwarnings("default", module=r"lightning\.fabric\.utilities\.rank_zero", category=UserWarning)
    warnings.showwarning = lambda message, *_, **__: _complain(f"warning: {message}")


def _is_first_process() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _complain(message: Any) -> None:
    """Print one line to stderr, once however many processes run."""
    if _is_first_process():
        print(f"fedhq: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
