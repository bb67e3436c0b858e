"""What ends a run in one sentence instead of a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigurationError(ValueError):
    """Something the user gave cannot work.

    The message says what was given, what is allowed and what to do. The command line prints it as one line and
    exits with code 2; `--debug` adds the traceback.
    """


class RunError(RuntimeError):
    """A run cannot go on, though what it was given may be right: its clients failed, or a process is gone.

    The message says what happened and what to do. The command line prints it as one line and exits with code 1;
    `--debug` adds the traceback.
    """


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A `; did you mean 'x'?` for error messages, or nothing where no allowed word is close."""
    matches = get_close_matches(word, list(allowed), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
