"""Where in a run an error of the user's own code was raised."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noted(where: str) -> Iterator[None]:
    """Add a note to whatever is raised within, which follows its message in a traceback and on the terminal."""
    try:
        yield
    except Exception as error:
        error.add_note(where)
        raise
