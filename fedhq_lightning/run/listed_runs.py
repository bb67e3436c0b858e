"""What is told of many runs at a glance, from the fewest bytes of each: a thousand are listed in a second or two."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from typing_extensions import TypedDict

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.run_names import RunName, run_folders
from fedhq_lightning.support.typed_json import read_json

_MOST_BYTES = 2**24
_CHECKPOINT = re.compile(r"round-(\d+)\.ckpt")
_MAX_ROUNDS = re.compile(rb"^  max_rounds: (\d+)$", re.MULTILINE)
_LOCKS = Path("/proc/locks")


@dataclass(frozen=True)
class ListedRun:
    """A run among others.

    Attributes:
        folder: Its folder.
        name: As the user has called it, else empty.
        id: Six digits of its folder's name.
        recipe: What it runs.
        began: When, in local time, as ISO 8601 without a zone.
        state: `done`, `failed` where it came to nothing, `running`, `stopped`, or `damaged`, its summary.
        rounds: Rounds that are done, as far as a checkpoint or the summary tells.
        max_rounds: Rounds in all; None where that is not known.
        metric_name: What is monitored; None before the end.
        metric: Its value for the deployed model, else for the global one; None where there is none.
        bytes: What its folder takes on the disk.
    """

    folder: str
    name: str
    id: str
    recipe: str
    began: str
    state: str
    rounds: int
    max_rounds: int | None
    metric_name: str | None
    metric: float | None
    bytes: int


class _Summary(TypedDict, total=False):
    __pydantic_config__ = {"extra": "allow"}  # type: ignore[misc]  # noqa: RUF012  # pydantic's own way
    failure: str | None
    rounds: int
    metric_name: str | None
    metric_quantized: float | None
    metric_fp: float | None


def newest_runs(root: Path) -> list[Path]:
    """The folders of all runs below a folder, the newest first."""
    return sorted(run_folders(root), key=lambda path: path.name, reverse=True)


def listed(folders: Collection[Path]) -> Iterator[ListedRun]:
    """What is told of each run."""
    locked = _locked_files()
    for folder in folders:
        parts = RunName.of(folder.name)
        if parts is not None:
            yield _listed(folder, parts, locked)


def _listed(folder: Path, parts: RunName, locked: Collection[int]) -> ListedRun:
    state, rounds, name, value = "stopped", _rounds_saved(folder), None, None
    if (folder / "summary.json").is_file():
        try:
            summary = read_json(folder / "summary.json", _Summary, _MOST_BYTES)
        except ConfigurationError:
            state = "damaged"
        else:
            state = "failed" if summary.get("failure") else "done"
            rounds, name = summary.get("rounds", rounds), summary.get("metric_name")
            value = summary.get("metric_quantized")
            value = summary.get("metric_fp") if value is None else value
    recipe = folder / "recipe.yaml"
    try:
        if recipe.stat().st_ino in locked:
            state = "running"
        match = _MAX_ROUNDS.search(recipe.read_bytes())
    except OSError:
        match = None
    return ListedRun(
        folder=str(folder),
        name=parts.name,
        id=parts.id,
        recipe=folder.resolve().parent.name,
        began=datetime.strptime(parts.began, "%Y%m%d-%H%M%S").isoformat(),
        state=state,
        rounds=rounds,
        max_rounds=int(match[1]) if match else None,
        metric_name=name,
        metric=value,
        bytes=_bytes_in(str(folder)),
    )


def _rounds_saved(folder: Path) -> int:
    """The round of the newest checkpoint; 0 where there is none."""
    try:
        names = os.listdir(folder / "checkpoints")
    except OSError:
        return 0
    return max((int(match[1]) for match in map(_CHECKPOINT.fullmatch, names) if match), default=0)


def _bytes_in(folder: str) -> int:
    total = 0
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return 0
    for entry in entries:
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
            total += _bytes_in(entry.path) if is_folder else entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue  # removed since
    return total


def _locked_files() -> set[int]:
    """Inodes of files that a process of this machine has locked; to try a lock could make a run that starts fail."""
    try:
        lines = _LOCKS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {int(match[1]) for line in lines if (match := re.search(r" FLOCK .* [\da-f]+:[\da-f]+:(\d+) ", line))}
