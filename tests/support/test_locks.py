"""Locks between processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.locks import is_locked, locked

HOLDER = """
import sys
from pathlib import Path
from fedhq_lightning.support.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_who_is_refused_is_told_why(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    assert is_locked(tmp_path / "lock")
    with pytest.raises(ConfigurationError, match="busy"), locked(tmp_path / "lock", "busy"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()
    assert not is_locked(tmp_path / "lock")
    with locked(tmp_path / "lock", "busy"):
        assert is_locked(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock")


def test_who_waits_gets_it_in_the_end(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.kill()
    out, _ = other.communicate(b"")
    assert (other.returncode, out) == (0, b"held\n")


def test_an_error_in_the_block_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    assert not is_locked(tmp_path / "lock")


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/lock: cannot be written"), locked(tmp_path / "file" / "lock"):
        pass
