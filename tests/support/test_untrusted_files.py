"""Files of anybody's are read within limits, or refused in a sentence."""

import os
from pathlib import Path

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.untrusted_files import read_bytes, read_lines, read_text


def test_what_is_there_is_read(tmp_path) -> None:
    (tmp_path / "a").write_bytes("\ufeffé\r\n".encode())
    assert read_bytes(tmp_path / "a", 7) == b"\xef\xbb\xbf\xc3\xa9\r\n"
    assert read_text(tmp_path / "a", 7) == "é\r\n"
    (tmp_path / "link").symlink_to("a")
    assert read_text(tmp_path / "link", 7) == "é\r\n"
    assert read_text(Path("/proc/self/stat"), 2**20), "which says that it has no bytes"


def test_refusals(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(10 * 2**30)
    (tmp_path / "latin").write_bytes("abcdé".encode("latin-1"))
    for path, reason in {
        tmp_path / "none": "No such file or directory",
        tmp_path: "Is a directory",
        tmp_path / "pipe": "is a pipe or a device; give a file",
        Path("/dev/zero"): "is a pipe or a device; give a file",
        tmp_path / "sparse": "is larger than 100 bytes, the most that is read here",
        Path("/proc/self/maps"): "is larger than 100 bytes, the most that is read here",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / "latin": "not UTF-8 text (byte 4)",
    }.items():
        with pytest.raises(ConfigurationError) as refused:
            read_text(path, 100)
        assert str(refused.value) == f"{path}: {reason}"
    for path in (tmp_path / "a\0b", tmp_path / "a\ud800"):
        with pytest.raises(ConfigurationError, match="no path"):
            read_text(path, 100)


def test_lines(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo\n" + b"3" * 11)
    assert list(read_lines(tmp_path / "a", 11)) == [b"one\n", b"two\n", b"3" * 11]
    with pytest.raises(ConfigurationError, match="a: has a line of more than 10 bytes, the most that is read"):
        list(read_lines(tmp_path / "a", 10))
