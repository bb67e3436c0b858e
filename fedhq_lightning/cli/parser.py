"""What subcommands share: how they are declared, and how they speak to the user."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.first_process import is_first_process
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.support.quiet import say_line
from fedhq_lightning.support.setup_notice import notice_aside

_LONGEST = 4000
"""Characters of a message; what it quotes may be somebody's megabytes."""

Function = Callable[[argparse.Namespace, list[str]], None]
"""Gets the known arguments and the others, which are `--KEY=VALUE` of a recipe."""


class AddCommand(Protocol):
    """Declares one subcommand and returns its parser, for arguments of its own."""

    def __call__(
        self, name: str, function: Function, help_text: str, epilog: str, takes_overrides: bool = True
    ) -> argparse.ArgumentParser:
        """Declare.

        Args:
            name: What follows `fedhq`.
            function: Does it.
            help_text: One sentence.
            epilog: Examples, and what else there is to know.
            takes_overrides: Whether arguments that the parser does not know are values of a recipe.
        """


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with errors of one line."""

    commands: Mapping[str, argparse.ArgumentParser] = {}  # never changed in place

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with exit code 2."""
        if "invalid choice" in message and "argument COMMAND" in message:
            word = message.split("'")[1]
            message = f"unknown command {word!r}; allowed are {', '.join(self.commands)}{nearest(word, self.commands)}"
        else:
            message = f"{message}; see {self.prog} --help"
        complain(message)
        raise SystemExit(2)


def path(text: str) -> Path:
    """The type of arguments that are paths; a shell expands `~` only where a word begins with it."""
    try:
        return expand_path(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def completed_by(action: argparse.Action, completer: Callable[..., Any]) -> None:
    """Tell argcomplete what an argument may be."""
    action.completer = completer  # type: ignore[attr-defined]  # argcomplete's protocol


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """Begin the message of a ConfigurationError with what was asked for."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{subject}: {error}") from error


def find_own_modules() -> None:
    """Let class paths name modules in the current directory, after everything that is installed."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def complain(message: Any) -> None:
    """Print one line to stderr, once however many processes run."""
    if is_first_process():
        text = str(message)
        with notice_aside():
            say_line(f"fedhq: {text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...'}", sys.stderr)
