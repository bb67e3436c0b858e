"""A run's numbers from Weights & Biases' own files, which are there with and without a network.

A `.wandb` file is a header of seven bytes (":W&B", a magic number, a version) and then LevelDB's log format: blocks of
32 KiB, in them records of checksum (CRC-32 of type and data), length, type and data; a record that does not fit into
its block goes on in the next. Each whole record is one protobuf `Record` of wandb's.

Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.logged_rows import CLOCK, ROUND, LoggedHistory, make_history
from fedhq_lightning.support.typed_json import parse_json
from fedhq_lightning.support.untrusted_files import read_bytes

_HEADER = struct.Struct("<4sHB")
_IDENT, _MAGIC, _VERSION = b":W&B", 0xBEE1, 0
_BLOCK_BYTES = 32 * 1024
_RECORD = struct.Struct("<IHB")
_MOST_BYTES = 2**30
"""Of a file: a hundred times the largest that a run has left, with media beside it and not in it."""
_DEEPEST = 50
"""Keys inside each other; a recipe's settings have ten."""
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_offline(source: str, files: Sequence[Path]) -> LoggedHistory:
    """The rows in `.wandb` files of one run.

    Args:
        source: For messages.
        files: In the order in which they were written: a resumed run has several. A file that a killed run left
            unfinished gives what is whole.

    Raises:
        ConfigurationError: Not such a file, a damaged one, files of several runs, or no round in them.
    """
    rows: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    runs: dict[str, Path] = {}
    for path in files:
        for record in _records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                rows.append(_row(path, record))
            elif kind == "config":
                _update(path, config, record.config)
            elif kind == "run":
                runs.setdefault(record.run.run_id, path)
                _update(path, config, record.run.config)
    if len(runs) > 1:
        listed = ", ".join(str(path.parent) for path in runs.values())
        raise ConfigurationError(f"{source}: holds several runs; name one of {listed}")
    return make_history(source, rows, config)


def is_complete(path: Path) -> bool:
    """Whether a `.wandb` file is there and holds the end of its run."""
    if not path.is_file():
        return False
    try:
        return any(record.WhichOneof("record_type") == "exit" for record in _records(path))
    except ConfigurationError:
        return False


def mend(path: Path) -> set[int] | None:
    """Make the file of a killed process one that `wandb sync` reads to its end: cut off the record it was writing.

    At such an end `wandb sync` stops, and leaves what a resumed run wrote into its own file aside.

    Returns:
        The rounds that it holds; None where it does not even hold the run, so that it is of no use to anybody.
    """
    rounds: set[int] = set()
    has_run, end = False, 0
    try:
        for content, end in _whole(path, _content(path)):  # noqa: B007  # the last one counts
            record = _parsed(path, content)
            kind = record.WhichOneof("record_type")
            has_run |= kind == "run"
            row = _row(path, record) if kind == "history" else {}
            if CLOCK in row and isinstance(number := row.get(ROUND), int):
                rounds.add(number)
    except ConfigurationError:
        return rounds  # damaged, not cut off: left as it is
    if has_run and path.stat().st_size > end:
        os.truncate(path, end)
    return rounds if has_run else None


def read_log(path: Path) -> Iterator[bytes]:
    """The whole records of a `.wandb` file, as bytes.

    Raises:
        ConfigurationError: Another kind of file, another version, or damage before its end.
    """
    for content, _ in _whole(path, _content(path)):
        yield content


def _content(path: Path) -> bytes:
    """A file with its header checked; empty where not even that is whole."""
    data = read_bytes(path, _MOST_BYTES)
    if len(data) < _HEADER.size and _HEADER.pack(_IDENT, _MAGIC, _VERSION).startswith(data):
        return b""
    ident, magic, version = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else (b"", 0, 0)
    if (ident, magic) != (_IDENT, _MAGIC):
        raise ConfigurationError(f"{path}: not a file of Weights & Biases; its first bytes are {data[:4]!r}")
    if version != _VERSION:
        raise ConfigurationError(f"{path}: version {version} of the format; version {_VERSION} can be read")
    return data


def _whole(path: Path, data: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole records, and where each ends."""
    position, parts = _HEADER.size, list[bytes]()
    while position < len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _RECORD.size:  # a block's padding
            position += left
            continue
        end = position + _RECORD.size
        if end > len(data):
            return  # a killed process
        if not any(data[position:end]) and not any(data[position:]):
            return  # a disk that had reserved more than was written
        checksum, length, kind = _RECORD.unpack_from(data, position)
        if end + length > len(data):
            return
        part = data[end : end + length]
        fits = kind in ((_MIDDLE, _LAST) if parts else (_FULL, _FIRST))
        if not fits or zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            raise ConfigurationError(f"{path}: damaged at byte {position:,} of {len(data):,}; copy the file anew")
        parts.append(part)
        if kind in (_FULL, _LAST):
            yield b"".join(parts), end + length
            parts = []
        position = end + length


def _records(path: Path) -> Iterator[Any]:
    for content in read_log(path):
        yield _parsed(path, content)


def _parsed(path: Path, content: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    # Made at run time, so that type checkers do not know it.
    make: Any = vars(wandb_internal_pb2)["Record"]
    record = make()
    try:
        record.ParseFromString(content)
    except DecodeError as error:
        raise ConfigurationError(f"{path}: a record that this version of wandb cannot read ({error})") from error
    return record


def _row(path: Path, record: Any) -> dict[str, Any]:
    return {_key(item): _value(path, item) for item in record.history.item}


def _value(path: Path, item: Any) -> Any:
    try:
        return parse_json(item.value_json, object)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: damaged: {_key(item)[:60]!r} holds {error}") from error


def _key(item: Any) -> str:
    """Nested names with dots, as W&B itself shows them."""
    return item.key or ".".join(item.nested_key)


def _update(path: Path, config: dict[str, Any], record: Any) -> None:
    changes: Iterable[Any] = record.update
    for item in changes:
        place, names = config, list(item.nested_key) or [item.key]
        if len(names) > _DEEPEST:
            raise ConfigurationError(f"{path}: damaged: a setting that is nested {len(names):,} deep")
        for name in names[:-1]:
            below = place.get(name)
            place[name] = place = below if isinstance(below, dict) else {}
        place[names[-1]] = _value(path, item)
    for item in record.remove:
        config.pop(_key(item), None)
