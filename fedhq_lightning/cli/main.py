"""`fedhq`: the command line. Its subcommands are in `fedhq_lightning.cli`; torch is imported by what needs it."""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence

from fedhq_lightning.cli import COMMANDS, shell
from fedhq_lightning.cli.own_code import told_from_own_lines
from fedhq_lightning.cli.parser import Function, Parser, complain
from fedhq_lightning.cli.word_wrap import HelpFormatter
from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.support.first_process import is_first_process, process_rank
from fedhq_lightning.support.process_age import seconds_so_far
from fedhq_lightning.support.quiet import nobody_reads, say_line, show_warnings, write_nowhere
from fedhq_lightning.support.signals import exit_code_of, stoppable, words_for
from fedhq_lightning.version import __version__

_EPILOG = """examples:
  fedhq ls                                          the shipped recipes
  fedhq run mnist5k-hybrid                          run one
  fedhq run mnist5k-hybrid --trainer.max_rounds=5   with another value
  fedhq runs                                        the newest runs, with names, states and metrics
  fedhq cp mnist5k-hybrid mine.yaml                 copy one to edit; then: fedhq run mine.yaml
  fedhq resume runs/mnist5k-hybrid/RUN              go on where a run was stopped
  fedhq eval runs/mnist5k-hybrid/RUN                its deployed model beside its float32 weights
  fedhq report runs/mnist5k-hybrid/*                several runs in one report
  fedhq profile mnist5k-hybrid                      measure its lanes and kernels on this host
  fedhq tune digits-tune                            search for better values by an Optuna study over whole runs
  fedhq compare digits-smoke --vary trainer.aggregator=FedAvg,FedProx
  fedhq flower digits-smoke                         a Flower app of it: its clients on nodes, over a network

fedhq COMMAND --help tells more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: Those of the command line unless given.

    Returns:
        0; 1 for a mistake in the user's own code, or a run that cannot go on; 2 for something else that the user can
        mend; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; 141 where nobody reads the output any more.

    Raises:
        Exception: What is neither, or anything with `--debug`.
    """
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()
            if arguments is None:
                gc.freeze()  # the process ends: to go through all that was imported once more would take seconds
    except BrokenPipeError:
        if not nobody_reads():
            raise
        write_nowhere()
        return 128 + signal.SIGPIPE  # as a shell has it of a program that the signal ended


def _main(arguments: Sequence[str] | None) -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what goes wrong between processes is told by us
    began = time.perf_counter() - (seconds_so_far() if arguments is None else 0.0)
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:
        from fedhq_lightning.cli import key_completion

        key_completion.complete(parser, os.environ.get("COMP_LINE", ""))  # ends the process
    known, rest = parser.parse_known_args(arguments)
    if known.command is None and not rest:
        say_line(shell.next_steps(), sys.stdout)
        return 0
    try:
        if rest and not (known.command and known.takes_overrides):
            command = f"fedhq {known.command}" if known.command else "fedhq"
            raise ConfigurationError(f"unknown argument {rest[0]!r}; see {command} --help")
        with stoppable(ctrl_c=True, second_ends=is_first_process()), warnings.catch_warnings():
            show_warnings(_warn)
            known.began = began
            known.function(known, rest)
    except (ConfigurationError, RunError) as error:
        _tell(error, error, known.debug)
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt as interruption:
        complain(f"{words_for(interruption)}{interruption}")
        return exit_code_of(interruption)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            raise
        own = None if known.debug else told_from_own_lines(error)
        if own is None:
            raise
        _tell(error, f"your own code failed; --debug shows the whole traceback\n{own}")
        return 1
    return 0


def _warn(line: str) -> None:
    """Show a warning, of whichever process: what only a later one has seen would be lost."""
    if is_first_process():
        complain(line)
    else:
        say_line(f"fedhq: process {process_rank()}: {line}", sys.stderr)


def _tell(error: Exception, message: object, with_traceback: bool = False) -> None:
    """Say what went wrong: the first process for all, another one where the mistake is its alone."""
    if not is_first_process() or "fedhq_lightning.support.process_group" in sys.modules:
        from fedhq_lightning.support import process_group  # which loads torch

        process_group.end(error)
        if not process_group.is_to_tell():
            return
    if with_traceback:
        say_line("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
    elif is_first_process():
        complain(message)
    else:
        say_line(f"fedhq: process {process_rank()}: {message}", sys.stderr)


def make_parser() -> Parser:
    """The parser of every subcommand."""
    parser = Parser(
        prog="fedhq",
        description="Federated learning with hybrid quantization.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fedhq_lightning {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add_command(
        name: str, function: Function, help_text: str, epilog: str, takes_overrides: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help_text,
            description=help_text,
            epilog=epilog,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        # Suppressed, or the default here would undo `fedhq --debug COMMAND`.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        command.set_defaults(function=function, takes_overrides=takes_overrides)
        return command

    for module in COMMANDS:
        module.add(add_command)
    for command in commands.choices.values():
        if command.get_default("takes_overrides"):
            command.usage = _with_keys(command.format_usage())
    parser.commands = commands.choices
    return parser


def _with_keys(usage: str) -> str:
    """A command's usage that says of the recipe's keys too."""
    keys, *lines = "[--KEY=VALUE ...]", *usage.rstrip().splitlines()
    has_room = len(f"{lines[-1]} {keys}") < shutil.get_terminal_size().columns - 1
    begin = " " * (len(lines[-1]) - len(lines[-1].lstrip()) or len("usage: fedhq "))
    return (usage.rstrip() + (f" {keys}" if has_room else f"\n{begin}{keys}")).removeprefix("usage: ")


if __name__ == "__main__":
    sys.exit(main())
