"""A checkpoint as a file: what `torch.save` writes, sealed with a checksum over every byte of it.

The seal is the comment of the zip archive that such a file is, so `torch.load`, Lightning and `unzip` read the file as
any other. Files without a seal, of version 1 and of Lightning, are held to the CRC-32 that zip has of each part, which
torch writes and does not look at.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

from fedhq_lightning.errors import ConfigurationError

FORMAT_VERSION = 2
"""Of the files that this version writes; it reads those of version 1, which have no seal, too."""
_VERSION = "format_version"
_MARK = b"fedhq_lightning xxh3-128 "
_END_OF_ARCHIVE = b"PK\x05\x06"
_END_BYTES = 22
"""Length of a zip's last record where the archive has no comment; the comment's length is its last two bytes."""
_DIGEST_BYTES = 32  # hexadecimal digits
_SEAL_BYTES = len(_MARK) + _DIGEST_BYTES
_READ_BYTES = 2**20


def to_bytes(state: dict[str, Any]) -> memoryview:
    """A checkpoint's file, sealed.

    Args:
        state: Tensors and plain values.
    """
    buffer = io.BytesIO()
    torch.save({_VERSION: FORMAT_VERSION, **state}, buffer)
    end = buffer.tell() - _END_BYTES
    assert buffer.getbuffer()[end : end + 4] == _END_OF_ARCHIVE
    buffer.seek(-2, os.SEEK_END)
    buffer.write(_SEAL_BYTES.to_bytes(2, "little") + _MARK)
    with buffer.getbuffer() as sealed:
        digest = xxhash.xxh3_128_hexdigest(sealed)
    buffer.write(digest.encode())
    return buffer.getbuffer()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint; nothing in it is executed, and nothing of a damaged one is read.

    Args:
        path: A file of ours, or of Lightning's.

    Raises:
        ConfigurationError: Not a checkpoint, a damaged one, or one of a later version.
    """
    try:
        with path.open("rb") as file:
            is_sealed = check_whole(path, file)
            file.seek(0)
            state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except ConfigurationError:
        raise
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such checkpoint") from None
    except Exception as error:
        raise ConfigurationError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise ConfigurationError(f"{path}: not a readable checkpoint (it holds no dict)")
    version = state.pop(_VERSION, 1)
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ConfigurationError(
            f"{path}: a checkpoint of format version {version!r}, and this fedhq_lightning reads 1 to "
            f"{FORMAT_VERSION}; take the version of the package that wrote it"
        )
    if version > 1 and not is_sealed:
        raise ConfigurationError(f"{path}: damaged: its checksum is gone")
    return state


def check_whole(path: Path, file: BinaryIO) -> bool:
    """Refuse a file of `torch.save` that is not as it was written, or that would be larger in memory than on disk.

    Args:
        path: Its name, for errors.
        file: Opened at its beginning.

    Returns:
        Whether it has a seal, and with it a checksum over every byte; else that of each part was looked at.

    Raises:
        ConfigurationError: It is damaged, not of `torch.save`, or its parts are compressed.
    """
    size = os.fstat(file.fileno()).st_size
    is_sealed = _has_whole_seal(path, file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise ConfigurationError(f"{path}: not a checkpoint: it is compressed, which torch does not do")
            if min((part.header_offset for part in parts), default=0):  # an archive that is held by a larger one
                raise ConfigurationError(f"{path}: damaged: its end is missing")
            if sum(part.file_size for part in parts) > size:
                raise ConfigurationError(f"{path}: damaged: its parts are larger than the file")
            damaged = None if is_sealed else archive.testzip()
    except ConfigurationError:
        raise
    except Exception as error:  # zipfile has one for each field that makes no sense
        raise ConfigurationError(f"{path}: damaged, or no checkpoint ({type(error).__name__}: {error})") from error
    if damaged is not None:
        raise ConfigurationError(f"{path}: damaged: the checksum of its part {damaged!r} is not that of its content")
    return is_sealed


def _has_whole_seal(path: Path, file: BinaryIO, size: int) -> bool:
    if size < _SEAL_BYTES:
        return False
    file.seek(size - _SEAL_BYTES)
    seal = file.read(_SEAL_BYTES)
    if not seal.startswith(_MARK):
        return False
    file.seek(0)
    digest, left = xxhash.xxh3_128(), size - _DIGEST_BYTES
    while left and (chunk := file.read(min(left, _READ_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    if digest.hexdigest().encode() != seal[len(_MARK) :]:
        raise ConfigurationError(f"{path}: damaged: its checksum is not that of its content")
    return True
