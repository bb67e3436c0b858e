"""What a run logged, read back from its folder, from W&B's offline files and from W&B's answers: always the same."""

import json
import math
import random
import shutil
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run import LoggedHistory, logged_values, read_history
from fedhq_lightning.run.logged_rows import make_history
from fedhq_lightning.run.offline_wandb import _records, is_complete, read_log
from fedhq_lightning.run.online_wandb import RunPath, parse_run_path, read_online
from fedhq_lightning.run.records import RoundRecord

from ..logged_run import SETTINGS, log_offline, wait_for_another_folder, write_logged_run
from ..small_run import allotted_rounds, write_run

NAME = "20250101-120000-ab12"


def exact(rows: Sequence[Any]) -> list[dict[str, str]]:
    """To compare bits, NaN included; W&B does not tell 1 from 1.0."""
    return [{name: float(value).hex() for name, value in sorted(row.items())} for row in rows]


def all_rounds() -> list[RoundRecord]:
    """Late rounds have values that JSON has no numbers for."""
    rounds = allotted_rounds()
    rounds[-3] = replace(rounds[-3], metrics={"train/train_loss": math.inf}, metric_quantized=math.nan)
    rounds[-2] = replace(rounds[-2], metrics={"train/train_loss": -math.inf})
    return rounds


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after round 8 and resumed after round 5, with both parts of its W&B run."""
    rounds = all_rounds()
    folder = write_logged_run(tmp_path_factory.mktemp("runs") / "digits" / NAME, rounds)
    forgotten = [replace(record, total_wall_seconds=1e6) for record in rounds[6:9]]
    monitored = {"monitor": "val_accuracy", "monitor_mode": "max"}
    log_offline(folder, [*rounds[:6], *forgotten], "failed", **monitored)
    wait_for_another_folder()
    log_offline(folder, rounds[6:], **monitored)
    return folder


@pytest.fixture(scope="module")
def recorded(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of that run with all that W&B adds and as W&B's server gives them, which quotes NaN."""
    rows = []
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for record in _records(file):
            if record.WhichOneof("record_type") == "history":
                row = {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
                rows.append({name: words.get(str(value), value) for name, value in row.items()})
    return rows


class TestTheSameRowsFromEverySource:
    def test_run_directory(self, run_dir: Path) -> None:
        history = read_history(run_dir)
        assert exact(history.rows) == exact([logged_values(record) for record in all_rounds()])
        assert exact(read_history(str(run_dir / "rounds.jsonl")).rows) == exact(history.rows)
        assert (history.metric_name, history.scheme) == ("val_accuracy", "w4a8")

    @pytest.mark.parametrize("where", [".", "wandb"])
    def test_offline_files_of_a_killed_and_resumed_run(self, run_dir: Path, tmp_path: Path, where: str) -> None:
        shutil.copytree(run_dir / "wandb", tmp_path / "wandb", symlinks=True)
        history = read_history(tmp_path / where)
        assert exact(history.rows) == exact(read_history(run_dir).rows)
        assert [row["round"] for row in history.rows] == list(range(13))
        assert (history.metric_name, history.monitor_mode, history.scheme) == ("val_accuracy", "max", "w4a8")
        assert history.settings["trainer"] == SETTINGS["trainer"]

    def test_one_offline_folder_or_file(self, run_dir: Path) -> None:
        first, second = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
        assert [row["round"] for row in read_history(first).rows] == list(range(9))
        assert [row["round"] for row in read_history(str(second.parent)).rows] == list(range(6, 13))

    def test_public_api(self, run_dir: Path, recorded: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        assert any("NaN" in row.values() for row in recorded)
        asked = answer(monkeypatch, lambda path: SimpleNamespace(scan_history=lambda: iter(recorded), config=SETTINGS))
        history = read_history("me/my-project/20250101-120000-ab12")
        assert exact(history.rows) == exact(read_history(run_dir).rows)
        assert history.scheme == "w4a8"
        assert asked == ["me/my-project/20250101-120000-ab12"]


def answer(monkeypatch: pytest.MonkeyPatch, run: Any) -> list[str]:
    """Stand in for W&B's server: `run` answers for a path; the paths asked for."""
    asked: list[str] = []

    class Api:
        def __init__(self, timeout: int) -> None:
            assert 0 < timeout <= 60

        def run(self, path: str) -> Any:
            asked.append(path)
            return run(path)

    monkeypatch.setattr(wandb, "Api", Api)
    monkeypatch.setattr("fedhq_lightning.run.online_wandb.is_logged_in", lambda: True)
    return asked


class TestOnline:
    @pytest.mark.parametrize(
        "text",
        ["a/b/c1", "wandb:a/b/c1", "https://wandb.ai/a/b/runs/c1", "https://wandb.ai/a/b/runs/c1/overview?x=1"],
    )
    def test_how_a_run_is_named(self, text: str) -> None:
        assert parse_run_path(text) == RunPath("a", "b", "c1")

    @pytest.mark.parametrize("text", ["a/b", "a", "../b/c", "a/b/c/d", "/a/b/c", ""])
    def test_what_names_none(self, text: str) -> None:
        assert parse_run_path(text) is None

    def test_without_a_key(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"W&B run a/b/c: no API key for http.* is known: run `wandb login`"
        ):
            read_history("a/b/c")

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (ValueError("Could not find run <Run a/b/c (not found)>"), "there is no such run at http"),
            (wandb.errors.CommError("HTTP 404: project not found"), "there is no such run at http"),
            (wandb.errors.AuthenticationError("HTTP 401: bad key"), "cannot be read from http.*: HTTP 401: bad key"),
            (OSError("Name or service not known"), "cannot be read from http.*: Name or service not known"),
        ],
    )
    def test_what_the_server_refuses(self, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: str) -> None:
            raise error

        answer(monkeypatch, refuse)
        with pytest.raises(ConfigurationError, match=f"W&B run a/b/c: {said}"):
            read_history("wandb:a/b/c")

    def test_a_server_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given_up = threading.Event()
        answer(monkeypatch, lambda path: given_up.wait(60))
        with pytest.raises(ConfigurationError, match="did not answer in time"):
            read_online(RunPath("a", "b", "c"), seconds=0.05)
        given_up.set()


class TestOfflineFiles:
    """Against a writer of LevelDB's log format that was written for this test."""

    @staticmethod
    def written(records: Sequence[bytes]) -> bytes:
        data = bytearray(b":W&B\xe1\xbe\x00")
        for record in records:
            rest, begun = record, False
            while True:
                left = 32768 - len(data) % 32768
                if left < 7:
                    data += bytes(left)
                    continue
                part, rest = rest[: left - 7], rest[left - 7 :]
                kind = {(False, False): 1, (False, True): 2, (True, True): 3, (True, False): 4}[begun, bool(rest)]
                data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
                begun = True
                if not rest:
                    break
        return bytes(data)

    @pytest.fixture(scope="class")
    @staticmethod
    def records() -> list[bytes]:
        generator = random.Random(0)
        # 32,747 with the file's header and its own leaves 7 bytes of the block: room for a header and no data.
        sizes = [32747, 0, 1, 70_000, 3, *(generator.randrange(20_000) for _ in range(12)), 32768, 5]
        return [generator.randbytes(size) for size in sizes]

    def test_records_in_blocks(self, records: list[bytes], tmp_path: Path) -> None:
        file = tmp_path / "run.wandb"
        file.write_bytes(self.written(records))
        assert list(read_log(file)) == records

    def test_cut_off_anywhere_leaves_what_is_whole(self, records: list[bytes], tmp_path: Path) -> None:
        file, data = tmp_path / "run.wandb", self.written(records)
        generator = random.Random(1)
        for cut in [*range(9), *(generator.randrange(len(data)) for _ in range(60)), len(data) - 1]:
            file.write_bytes(data[:cut])
            found = list(read_log(file))
            assert found == records[: len(found)]
            whole = 0
            while whole < len(records) and len(self.written(records[: whole + 1])) <= cut:
                whole += 1
            assert len(found) == whole
        file.write_bytes(data + bytes(5000))
        assert list(read_log(file)) == records

    def test_damage_is_told_from_an_end(self, records: list[bytes], tmp_path: Path) -> None:
        file, data = tmp_path / "run.wandb", bytearray(self.written(records))
        data[50_000] ^= 1
        file.write_bytes(data)
        with pytest.raises(ConfigurationError, match=r"run\.wandb: damaged at byte 32,7\d\d of "):
            list(read_log(file))

    def test_a_truncated_run_gives_its_first_rounds(self, run_dir: Path, tmp_path: Path) -> None:
        whole = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))[1].read_bytes()
        file, found = tmp_path / "run.wandb", set[int]()
        for cut in range(len(whole) // 4, len(whole), len(whole) // 25):
            file.write_bytes(whole[:cut])
            rows = read_history(file).rows
            assert exact(rows) == exact([logged_values(record) for record in all_rounds()[6 : 6 + len(rows)]])
            found.add(len(rows))
        assert len(found) > 3

    def test_the_end_of_a_run_is_there_once_the_tracker_has_finished(self, run_dir: Path, tmp_path: Path) -> None:
        for file in run_dir.glob("wandb/offline-run-*/*.wandb"):
            assert is_complete(file)
            (tmp_path / "run.wandb").write_bytes(file.read_bytes()[:-1])
            assert not is_complete(tmp_path / "run.wandb")
        assert not is_complete(tmp_path / "other.wandb")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"PK\x03\x04 an archive", "not a file of Weights & Biases; its first bytes are b'PK"),
            (b":W&B\xe1\xbe\x01", "version 1 of the format; version 0 can be read"),
            (b"", "holds no round of a federated run"),
        ],
    )
    def test_other_files(self, content: bytes, said: str, tmp_path: Path) -> None:
        (tmp_path / "run.wandb").write_bytes(content)
        with pytest.raises(ConfigurationError, match=said):
            read_history(tmp_path / "run.wandb")

    def test_files_of_several_runs(self, run_dir: Path, tmp_path: Path) -> None:
        (file, _) = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
        for name in (NAME, "other-run-id-of-15.."):
            target = tmp_path / f"offline-run-20250101_120000-{name}" / f"run-{name}.wandb"
            target.parent.mkdir()
            # A run's id is in its first records; one of the same length keeps everything but the checksum.
            target.write_bytes(self.written([r.replace(NAME.encode(), name.encode()) for r in read_log(file)]))
        with pytest.raises(ConfigurationError, match=r"holds several runs; name one of .*-ab12, .*of-15"):
            read_history(tmp_path)


class TestWhatIsNoRun:
    def test_nothing_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()
        for where in ("runs/digits/20250101", tmp_path / "a" / "b", "nowhere", "../a/b"):
            with pytest.raises(ConfigurationError, match="there is no such file or folder; give a run directory"):
                read_history(where)

    def test_other_files_and_folders(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="not a run; give a run directory"):
            read_history(tmp_path)
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(ConfigurationError, match=r"notes\.txt: not a run; give"):
            read_history(tmp_path / "notes.txt")

    def test_a_folder_of_runs_names_them(self, run_dir: Path) -> None:
        with pytest.raises(ConfigurationError, match=f"not a run; runs in it: .*{NAME}; give"):
            read_history(run_dir.parent)
        with pytest.raises(ConfigurationError, match=f"not a run; runs in it: .*{NAME}; give"):
            read_history(run_dir.parents[1])

    def test_a_run_that_did_not_begin(self, tmp_path: Path) -> None:
        (tmp_path / "rounds.jsonl").write_text("")
        with pytest.raises(ConfigurationError, match="holds no round of a federated run"):
            read_history(tmp_path)


class TestComparable:
    def test_a_run_of_the_same_kind(self, run_dir: Path) -> None:
        read_history(run_dir).check(metric_name="val_accuracy", monitor_mode="max")
        read_history(run_dir / "wandb").check(metric_name="val_accuracy", monitor_mode="max")

    def test_no_boundary_logged(self, tmp_path: Path) -> None:
        history = read_history(write_run(tmp_path / "run"))
        said = r"allocation/slack was never logged.*; logged were: bytes/downlink, .*metric_quantized.*HybridAllocator"
        with pytest.raises(ConfigurationError, match=said):
            history.check()
        history.check(names=())

    def test_another_metric_or_direction(self, run_dir: Path) -> None:
        history = read_history(run_dir / "wandb")
        with pytest.raises(
            ConfigurationError, match="its monitored metric is 'val_accuracy', this run's is 'val_loss'"
        ):
            history.check(metric_name="val_loss")
        with pytest.raises(ConfigurationError, match="its monitored direction is 'max', this run's is 'min'"):
            history.check(metric_name="val_accuracy", monitor_mode="min")

    def test_never_evaluated(self) -> None:
        rows = [{"round": 1, "seconds/virtual": 2.0, "allocation/slack": 0.1, "allocation/share": 0.0}]
        with pytest.raises(ConfigurationError, match="no round was evaluated"):
            make_history("run", rows, {}).check()

    @pytest.mark.parametrize(
        "again",
        [
            {"virtual/metric_fp": 0.5},  # of before 0.3
            {"metric_fp_by_virtual_seconds": 0.5, "qat_share": 0.0, "round_bytes": 9.0},
        ],
    )
    def test_what_a_tracker_got_a_second_time_is_left_out(self, again: dict[str, float]) -> None:
        row = {"round": 1, "seconds/virtual": 2.0, "metric_fp": 0.5}
        assert make_history("a run", [row | again], {}).rows == [row]

    def test_the_metric_is_found_by_its_values_where_no_setting_names_it(self) -> None:
        rows = [logged_values(record) for record in allotted_rounds()]
        assert make_history("run", rows, {}).metric_name == "val_accuracy"
        for row in rows:
            if "quantized/val_accuracy" in row:
                row["quantized/val_f1"] = row["quantized/val_accuracy"]
        assert make_history("run", rows, {}).metric_name is None
        nameless = LoggedHistory("run", rows, {})
        nameless.check(metric_name="val_accuracy")
