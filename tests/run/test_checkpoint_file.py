"""A checkpoint's file: whole, or refused before anything of it is used."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.checkpoint_file import load_checkpoint, to_bytes

from ..mutations import attacked

STATE: dict[str, Any] = {"state": {"w": torch.arange(6.0), "b": torch.tensor(3)}, "round": 7, "name": "x"}


def written(path: Path, data: bytes | memoryview) -> Path:
    path.write_bytes(data)
    return path


def of_torch(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load_checkpoint(path)
    return str(raised.value).removeprefix(f"{path}: ")


def is_as_saved(state: dict[str, Any]) -> bool:
    return (
        state.keys() == STATE.keys()
        and state["state"].keys() == STATE["state"].keys()
        and all(torch.equal(state["state"][name], value) for name, value in STATE["state"].items())
        and (state["round"], state["name"]) == (7, "x")
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "round-000007.ckpt"


def test_comes_back_and_is_torchs_own_format(path: Path) -> None:
    written(path, to_bytes(STATE))
    assert is_as_saved(load_checkpoint(path))
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(loaded["state"]["w"], STATE["state"]["w"])
    assert zipfile.ZipFile(path).testzip() is None


def test_every_bit_counts(path: Path) -> None:
    data = bytes(to_bytes(STATE))
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        assert refusal(written(path, changed))


def test_zeroed_and_cut_off(path: Path) -> None:
    data = bytes(to_bytes({"w": torch.randn(5000)}))
    for start in range(0, len(data) - 400, 97):
        assert "damaged" in refusal(written(path, data[:start] + bytes(400) + data[start + 400 :]))
    for length in range(0, len(data), 97):
        assert "damaged" in refusal(written(path, data[:length]))
    assert refusal(written(path, data + b"more")) == "damaged: its checksum is gone"


def test_a_checkpoint_within_another_is_not_taken_for_it(path: Path) -> None:
    within = torch.frombuffer(bytearray(of_torch(STATE)), dtype=torch.uint8)
    data = of_torch({"round": 3, "parts": [within]})
    assert load_checkpoint(written(path, data))["round"] == 3
    assert refusal(written(path, data[: data.index(b"PK\x05\x06") + 22])) == "damaged: its end is missing"


@pytest.mark.parametrize("version", [{}, {"format_version": 1}])
def test_files_without_a_seal_are_held_to_zips_checksums(path: Path, version: dict[str, int]) -> None:
    data = of_torch({**version, **STATE})
    assert is_as_saved(load_checkpoint(written(path, data)))
    place = data.index(STATE["state"]["w"].numpy().tobytes())
    for position in range(place, place + 24):
        changed = bytearray(data)
        changed[position] ^= 4
        assert refusal(written(path, changed)).startswith("damaged: the checksum of its part 'archive/data/0'")


@pytest.mark.parametrize("version", [99, 0, -1, "2", None, 2.0, True, [1]])
def test_other_versions(path: Path, version: Any) -> None:
    said = refusal(written(path, to_bytes({**STATE, "format_version": version})))
    assert said.startswith(f"a checkpoint of format version {version!r}, and this fedhq_lightning reads 1 to 2; take")


def test_a_seal_that_is_gone(path: Path) -> None:
    assert refusal(written(path, of_torch({**STATE, "format_version": 2}))) == "damaged: its checksum is gone"


class _Unplain:
    pass


def test_what_is_no_checkpoint(path: Path) -> None:
    assert refusal(path) == "no such checkpoint"
    assert refusal(path.parent).startswith("not a readable checkpoint (IsADirectoryError)")
    assert refusal(written(path, b"")).startswith("damaged, or no checkpoint (BadZipFile")
    assert refusal(written(path, b"not a checkpoint")).startswith("damaged, or no checkpoint (BadZipFile")
    assert refusal(written(path, of_torch({"code": _Unplain()}))) == "not a readable checkpoint (UnpicklingError)"
    assert refusal(written(path, of_torch([1]))) == "not a readable checkpoint (it holds no dict)"
    before = io.BytesIO()
    torch.save(STATE, before, _use_new_zipfile_serialization=False)
    assert refusal(written(path, before.getvalue())).startswith("damaged, or no checkpoint")


def test_a_file_that_would_grow_in_memory(path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(of_torch(STATE))) as sound, zipfile.ZipFile(bomb, "w") as archive:
        for part in sound.infolist():
            kind = zipfile.ZIP_DEFLATED if part.filename.endswith("data/0") else zipfile.ZIP_STORED
            content = bytes(2**20) if kind else sound.read(part)
            archive.writestr(part.filename, content, kind)
    assert refusal(written(path, bomb.getvalue())) == "not a checkpoint: it is compressed, which torch does not do"
    data = bytearray(of_torch({"w": torch.zeros(1000)}))
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    data[entry + 20 : entry + 28] = (2**31 - 1).to_bytes(4, "little") * 2
    assert "damaged" in refusal(written(path, data))


def test_mutations_are_refused_or_change_nothing(path: Path) -> None:
    attack(path, range(3000))


@pytest.mark.slow
def test_many_mutations_are_refused_or_change_nothing(path: Path) -> None:
    attack(path, range(60_000))


def attack(path: Path, seeds: range) -> None:
    samples = [bytes(to_bytes(STATE)), of_torch({**STATE, "format_version": 1}), of_torch(STATE)]

    def read(data: bytes) -> None:
        state = load_checkpoint(written(path, data))
        assert is_as_saved(state), "loaded with other content"

    tally = attacked(read, samples, seeds, most_megabytes=16)
    assert tally["refused"] > tally["read"]
    only_sealed = attacked(read, samples[:1], seeds[: len(seeds) // 4], most_megabytes=16)
    assert only_sealed["read"] == 0
