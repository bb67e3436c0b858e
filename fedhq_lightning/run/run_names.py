"""What runs are called: the name of a run's folder, and the folder that a name means. Imports nothing heavy.

A folder is called `TIME-ID` or, where the user has named the run, `TIME-ID-NAME`.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.paths import expand

DEFAULT_ROOT = Path("runs")
"""Where names are looked for: `default_root_dir` of a trainer that sets none."""
_FOLDER = re.compile(r"(?P<began>\d{8}-\d{6})-(?P<id>[0-9a-f]{6})(?:-(?P<name>.+))?")
LONGEST_NAME = 64
"""Letters of a run's name."""
_NAME = re.compile(rf"[A-Za-z0-9][\w.+=-]{{0,{LONGEST_NAME - 1}}}", re.ASCII)
_TAKEN = ("last", "best")
_DEEPEST = 6
_DEPTH_OF_RUNS = 2
"""Of a run's folder below `default_root_dir`."""
_MOST_LISTED = 3


@dataclass(frozen=True)
class RunName:
    """What a run's folder is called, in its parts.

    Attributes:
        began: When, as `%Y%m%d-%H%M%S` in local time.
        id: Six hexadecimal digits that tell it from others of that second.
        name: As the user has called it, else empty.
    """

    began: str
    id: str
    name: str

    @classmethod
    def of(cls, folder: str) -> RunName | None:
        """The parts of a folder's name; None for a folder that is none of a run."""
        match = _FOLDER.fullmatch(folder)
        return None if match is None else cls(match["began"], match["id"], match["name"] or "")

    @property
    def unique(self) -> str:
        """What no other run has and stays where the user calls the run otherwise: `TIME-ID`."""
        return f"{self.began}-{self.id}"

    @property
    def shown(self) -> str:
        """What tells it from others in few letters: its name, else its id."""
        return self.name or self.id


def new_folder_name(name: str | None = None) -> str:
    """Name of the folder of a run that begins now.

    Args:
        name: As the user calls it.
    """
    return "-".join(filter(None, (time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(3), name)))


def check_name(name: str | None) -> None:
    """Refuse what cannot be part of a folder's name on every system, or of a word of the command line.

    Raises:
        ConfigurationError: It is such a name.
    """
    if name is not None and (not _NAME.fullmatch(name) or name in _TAKEN):
        raise ConfigurationError(
            f"name {name!r}: give up to {LONGEST_NAME} letters, digits, '-', '_', '.', '+' and '=', the first one a "
            f"letter or a digit; not {' or '.join(_TAKEN)}, which have a meaning of their own"
        )


def given_name(folder: Path) -> str:
    """As the user has called the run in a folder, else empty."""
    parts = RunName.of(folder.resolve().name)
    return parts.name if parts else ""


def run_folders(root: Path) -> Iterator[Path]:
    """The folders of runs at any depth of up to six below a folder, in no order."""
    yield from _found(str(root), _DEEPEST)


def _found(folder: str, depth: int) -> Iterator[Path]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            if _FOLDER.fullmatch(entry.name):
                yield Path(entry.path)
            elif depth > 1:
                yield from _found(entry.path, depth - 1)


def run_called(given: Path, root: Path = DEFAULT_ROOT) -> Path:
    """The folder of the run that is meant.

    Args:
        given: A path, which stays as it is where something is there; else a run's name, the id in its folder's name,
            or that whole name; below a folder, that of a run in there, as `results/first-try`.
        root: Where runs are for whom no folder is given.

    Returns:
        The folder; what was given where no run is called so.

    Raises:
        ConfigurationError: Several are called so.
    """
    if given.exists():
        return given
    candidates = run_folders(root) if len(given.parts) == 1 else _found(str(given.parent), _DEPTH_OF_RUNS)
    found = [path for path in candidates if _is_called(path.name, given.name)]
    if len(found) > 1:
        newest = sorted(map(str, found), key=lambda path: path.rpartition("/")[2], reverse=True)
        more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
        raise ConfigurationError(
            f"{len(found)} runs are called {str(given)!r}: {', '.join(newest[:_MOST_LISTED])}{more}; give the folder "
            "of the one that is meant"
        )
    return found[0] if found else given


def run_meant(text: str) -> str:
    """As `run_called`, of a text that may be no path: it stays as it is unless a run is called so."""
    found = run_called(Path(text)) if text else Path(text)
    return text if found == Path(text) else str(found)


def run_if_given(given: Any, key: str) -> Any:
    """As `run_meant` where a text or a path was given, with `~` and variables put in; anything else as it is.

    Args:
        given: A run, or something else.
        key: What it is for, for the message.
    """
    return run_meant(expand(given, key)) if isinstance(given, str | Path) else given


def _is_called(folder: str, given: str) -> bool:
    parts = RunName.of(folder)
    return parts is not None and given in (folder, parts.name, parts.id)
