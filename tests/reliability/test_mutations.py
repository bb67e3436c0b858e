"""The mutation fuzzer that tests of readers share."""

import mmap
import time

import pytest

from fedhq_lightning.errors import ConfigurationError

from ..mutations import attacked, mutated


def test_mutations_differ_from_the_data_and_from_each_other_and_are_the_same_for_a_seed() -> None:
    data = bytes(range(256)) + b'{"length": 12, "name": "x"}'
    changed = [mutated(data, seed) for seed in range(2000)]
    assert changed == [mutated(data, seed) for seed in range(2000)]
    assert data not in changed
    assert len(set(changed)) > 1900
    assert any(len(each) < 64 for each in changed)
    assert any(len(each) > 2 * len(data) for each in changed)
    assert all(mutated(b"", seed) for seed in range(100))


def test_a_reader_is_held_to_its_errors_its_time_and_its_memory() -> None:
    def read(data: bytes) -> None:
        if data != b"12":
            raise ConfigurationError("not 12")

    assert attacked(read, [b"12"], range(50)) == {"refused": 50}
    assert attacked(len, [b"12"], range(50)) == {"read": 50}
    with pytest.raises(AssertionError, match="seed 0: ValueError"):
        attacked(lambda data: int(data == b"12" or "x"), [b"12"], range(50))
    with pytest.raises(AssertionError, match=r"seed 0: \d\.\d\d s"):
        attacked(lambda data: data == b"12" or _compute(1.1), [b"12"], range(50))
    with pytest.raises(AssertionError, match=r"seed 0: \d\d MB"):
        attacked(lambda data: data == b"12" or _touch(48), [b"12"], range(50), most_megabytes=30)


def _touch(megabytes: int) -> None:
    """Use pages of its own: what the C library hands out may lie where other tests have left room."""
    with mmap.mmap(-1, megabytes * 2**20) as pages:
        pages.write(b"x" * len(pages))


def _compute(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
