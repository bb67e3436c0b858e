"""Ends a process right after one of its file operations, as SIGKILL or a power cut may."""

import builtins
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ON_PATHS = ("mkdir", "rmdir", "unlink", "remove", "rename", "replace", "chmod", "truncate", "link", "symlink")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FileOperations:
    """Counts what this process does to files below a folder, through Python, and kills it after one of them.

    Opening to write, each half of each write, truncating, `fsync`, and whatever makes, renames or removes names.

    Args:
        root: The folder.
        last: The operation that is the last, from 1; None for no end.
    """

    def __init__(self, root: Path, last: int | None = None) -> None:
        self.count = 0
        self.names: list[str] = []
        self._root = str(root.absolute())
        self._last = last

    def watch(self) -> None:
        """From here on, until the process ends."""
        for name in _ON_PATHS:
            self._patch(name, lambda path, *others, dir_fd=None, **named: self._is_below(_whole(path, dir_fd)))
        self._patch("fsync", lambda descriptor: self._is_below(_path_of(descriptor)))
        self._patch("open", lambda path, flags, *others, **named: flags & _WRITING and self._is_below(path))
        io.open = builtins.open = self._open_file  # type: ignore[assignment]

    def done(self, name: str) -> None:
        """One more."""
        self.count += 1
        self.names.append(name)
        if self.count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def _patch(self, name: str, counts: Callable[..., Any]) -> None:
        plain = getattr(os, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            is_ours = counts(*arguments, **named)
            result = plain(*arguments, **named)
            if is_ours:
                self.done(f"{name} {arguments[0]}")
            return result

        setattr(os, name, watched)

    def _is_below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self._root)

    def _open_file(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: Any = None,
        errors: Any = None,
        newline: Any = None,
        **others: Any,
    ) -> Any:
        if not set(mode) & set("wax+") or not self._is_below(file):
            return _open(file, mode, buffering, encoding, errors, newline, **others)
        raw = _Watched(self, os.fspath(file), mode.replace("b", "").replace("t", ""))
        self.done(f"open {file}")
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)


_open = io.open


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _whole(path: Any, folder: int | None) -> Any:
    return path if folder is None else os.path.join(_path_of(folder), path)


class _Watched(io.FileIO):
    def __init__(self, operations: FileOperations, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._operations = operations

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for part in (view[: len(view) // 2], view[len(view) // 2 :]):
            if part:
                super().write(part)
                self._operations.done(f"write {self.name!s}")
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        length = super().truncate(size)
        self._operations.done(f"truncate {self.name!s}")
        return length
