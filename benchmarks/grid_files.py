"""The cells of a grid in one file of lines, and as the folders in which they are run.

`fedhq_lightning` keeps a comparison as a folder with a small JSON file a cell: several workers write at once, and what
has ended stays when a run is stopped. Kept for good is one file a grid, `benchmarks/cells/GRID.jsonl`: each line is one
of these files, a setting's `comparison.json` before its cells. The same cells make the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.locks import locked


def unpack(file: Path, folder: Path) -> None:
    """Write every file of a grid; what the folder holds beside them stays.

    Args:
        file: Of the grid; a new grid has none yet.
        folder: Gets a folder for each setting.
    """
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        entry = json.loads(line)
        path = folder / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_dumped(entry["content"]), encoding="utf-8")


def pack(folder: Path, file: Path) -> None:
    """Write the JSON files of a grid's settings as one file, sorted."""
    paths = [PurePosixPath(path.relative_to(folder)) for path in folder.rglob("*.json")]
    lines = [
        _dumped({"path": str(path), "content": json.loads((folder / path).read_text(encoding="utf-8"))})
        for path in sorted(paths, key=lambda path: (path.parts[0], len(path.parts), path.parts))
    ]
    if lines:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, "\n".join(lines) + "\n")


@contextmanager
def unpacked(file: Path, folder: Path) -> Iterator[Path]:
    """A grid's cells in a folder of their own while more of them are run; packed and removed at the end.

    A command that is killed leaves the folder, and the next one goes on with the cells in it.

    Args:
        file: Of the grid.
        folder: Working folder, this grid's alone.

    Raises:
        ConfigurationError: Another process is running the grid.
    """
    with locked(folder.with_suffix(".lock"), f"{folder}: another process is running this grid; let it end first"):
        folder.mkdir(exist_ok=True)
        unpack(file, folder)
        try:
            yield folder
        finally:
            pack(folder, file)
            shutil.rmtree(folder)


def _dumped(content: object) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"))
