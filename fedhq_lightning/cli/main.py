"""`fedhq`: the command line. Its subcommands are in `fedhq_lightning.cli`; torch is imported by what needs it."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence

from fedhq_lightning.cli import COMMANDS, shell
from fedhq_lightning.cli.own_code import told_from_own_lines
from fedhq_lightning.cli.parser import Function, Parser, complain
from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.support.first_process import is_first_process
from fedhq_lightning.support.quiet import say_line, show_warnings
from fedhq_lightning.support.signals import exit_code_of, stoppable, words_for
from fedhq_lightning.version import __version__

_EPILOG = """examples:
  fedhq ls                                          the shipped recipes
  fedhq run mnist5k-hybrid                          run one
  fedhq run mnist5k-hybrid --trainer.max_rounds=5   with another value
  fedhq cp mnist5k-hybrid mine.yaml                 copy one to edit; then: fedhq run mine.yaml
  fedhq resume runs/mnist5k-hybrid/RUN              go on where a run was stopped
  fedhq eval runs/mnist5k-hybrid/RUN                its deployed model beside its float32 weights
  fedhq report runs/mnist5k-hybrid/*                several runs in one report
  fedhq profile mnist5k-hybrid                      measure its lanes and kernels on this host
  fedhq tune digits-tune                            search for better values by an Optuna study over whole runs
  fedhq compare digits-smoke --allocators all-ptq all-qat free-qat

fedhq COMMAND --help tells more.
"""
_LONGEST_WAIT_SECONDS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: Those of the command line unless given.

    Returns:
        0; 1 for a mistake in the user's own code, or a run that cannot go on; 2 for something else that the user can
        mend; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Raises:
        Exception: What is neither, or anything with `--debug`.
    """
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options=False)  # ends the process
    known, rest = parser.parse_known_args(arguments)
    if known.command is None and not rest:
        print(shell.next_steps())
        return 0
    try:
        if rest and not (known.command and known.takes_overrides):
            command = f"fedhq {known.command}" if known.command else "fedhq"
            raise ConfigurationError(f"unknown argument {rest[0]!r}; see {command} --help")
        with stoppable(ctrl_c=True, second_ends=is_first_process()), warnings.catch_warnings():
            show_warnings(_warn)
            known.function(known, rest)
    except (ConfigurationError, RunError) as error:
        if known.debug:
            traceback.print_exception(error)
            _first_has_ended()
        else:
            _tell(error)
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt as interruption:
        if not is_first_process():
            # A failure here would make Lightning kill the first process, which may still be closing its files.
            return 0
        complain(f"{words_for(interruption)}{interruption}")
        return exit_code_of(interruption)
    except Exception as error:
        own = None if known.debug else told_from_own_lines(error)
        if own is None:
            raise
        _tell(f"your own code failed; --debug shows the whole traceback\n{own}")
        return 1
    return 0


def _warn(line: str) -> None:
    """Show a warning, of whichever process: what only a later one has seen would be lost."""
    if is_first_process():
        complain(line)
    else:
        say_line(f"fedhq: process {os.environ.get('LOCAL_RANK')}: {line}", sys.stderr)


def _tell(message: object) -> None:
    """Say what went wrong: the first process for all, another one where the mistake is its alone."""
    complain(message)
    if not _first_has_ended():
        say_line(f"fedhq: process {os.environ.get('LOCAL_RANK')}: {message}", sys.stderr)


def _first_has_ended() -> bool:
    """Let the first process end first, where it is ending of the same mistake and tells of it.

    Where Lightning started this process, it kills the first one as soon as it finds that this one has failed, be the
    message told or not. Other launchers (RANK is set by torchrun and its kin) do not.

    Returns:
        False where another process is the first and goes on, so that this mistake is this process's alone.
    """
    if is_first_process() or "RANK" in os.environ:
        return True
    first, started = os.getppid(), time.monotonic()
    while os.getppid() == first:
        if time.monotonic() - started > _LONGEST_WAIT_SECONDS:
            return False
        time.sleep(0.05)
    return True


def make_parser() -> Parser:
    """The parser of every subcommand."""
    parser = Parser(
        prog="fedhq",
        description="Federated learning with hybrid quantization.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
            formatter_class=argparse.RawDescriptionHelpFormatter,
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
            command.usage = f"{command.format_usage().removeprefix('usage: ').strip()} [--KEY=VALUE ...]"
    parser.commands = list(commands.choices)
    return parser


if __name__ == "__main__":
    sys.exit(main())
