"""A run that was killed goes on at its trackers: every round is there once, and `wandb sync` takes it all."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from fedhq_lightning import tracking
from fedhq_lightning.callbacks import HybridAllocator
from fedhq_lightning.run import read_history
from fedhq_lightning.run.offline_wandb import mend, read_log
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.trainer import FederatedTrainer

from ..logged_run import SETTINGS, log_offline, wait_for_another_folder, write_logged_run
from ..programs import run_program
from ..small_federation import SmallData, SmallModule, trainer
from ..small_run import allotted_rounds, small_summary
from ..trainer.runs import Recorder
from .offline import Logged

ROUNDS = allotted_rounds(num_rounds=6)
KILLED = """
import os, signal, time
from tests.tracking.offline import Logged
from tests.tracking.test_resume import small_run

def kill(trainer, record):
    if record.round == 4:
        while Logged(trainer.run_dir).rounds != [0, 1, 2, 3]:  # wandb writes once a second
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

small_run(True, kill)
"""


def small_run(
    logger: bool | list[Logger],
    at_round_end: Callable[[FederatedTrainer, RoundRecord], None] | None = None,
    ckpt_path: Path | None = None,
) -> FederatedTrainer:
    """Six rounds, with a checkpoint after every second."""
    there = trainer(
        max_rounds=6,
        scheme="w4a8",
        fleet="mixed",
        callbacks=[Recorder(at_round_end), HybridAllocator()],
        checkpoint_every_n_rounds=2,
        logger=logger,
    )
    there.fit(SmallModule(), SmallData(), ckpt_path)
    return there


@dataclass
class Received:
    """What a `wandb sync` sent: a stand-in for W&B's server that keeps the history of runs, as far as a sync asks."""

    runs: list[str] = field(default_factory=list)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)

    def answer(self, query: str, variables: dict[str, Any]) -> Any:
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        if "RunResumeStatus" in query and self.history:
            lines = [json.dumps(self.history[at]) for at in sorted(self.history)]
            counts = {"logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0}
            tails = {"historyTail": json.dumps(lines[-1:]), "eventsTail": '["{}"]'}
            texts = {
                "summaryMetrics": "{}",
                "config": "{}",
                "wandbConfig": '{"t": {}}',
                "displayName": "",
                "notes": None,
            }
            bucket = {"id": "r", "name": variables["name"], "tags": []} | counts | tails | texts
            return {"model": project | {"bucket": bucket}}
        if "RunResumeStatus" in query:
            return {"model": None}
        if "UpsertBucket" in query:
            self.runs.append(variables["name"])
            bucket = {"id": "r", "name": variables["name"], "displayName": "", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": not self.history}}
        if "CreateArtifact" in query:
            given = variables["input"]
            self.artifacts[given["artifactTypeName"]] = sorted(each["alias"] for each in given["aliases"])
        return None


@pytest.fixture
def server() -> Iterator[tuple[Received, str]]:
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply: Any = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                data = received.answer(asked["query"], asked.get("variables") or {})
                reply = {"data": data} if data is not None else {"data": None, "errors": [{"message": "not kept"}]}
            elif self.path.endswith("/file_stream"):
                sent = json.loads(body).get("files", {}).get("wandb-history.jsonl")
                for at, line in enumerate(sent["content"] if sent else []):
                    received.history[sent["offset"] + at] = json.loads(line)
            content = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield received, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def sync(run_dir: Path, address: str) -> str:
    """`wandb sync` as the documentation gives it; what it says."""
    environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SERVICE")}
    environment |= {"WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40}
    command = [sys.executable, "-m", "wandb", "sync", *map(str, run_dir.glob("wandb/offline-run-*"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr


@pytest.mark.usefixtures("quick")
def test_killed_resumed_and_synced(tmp_path: Path, server: tuple[Received, str]) -> None:
    # In this process's own wandb service the run would still be open, and its id in use.
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    (tmp_path / "killed.py").write_text(KILLED)
    killed = run_program("killed.py", env=alone)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (run_dir,) = tmp_path.glob("runs/*/*")
    wait_for_another_folder()
    small_run(True, ckpt_path=run_dir)
    logged = Logged(run_dir)
    # The checkpoint was of round 2: round 3 was done again, and not logged again.
    assert logged.rounds == list(range(7))
    history = read_history(run_dir / "wandb")
    held = [row["round"] for row in history.rows]
    assert held == list(range(7))
    for ours, theirs in zip(read_history(run_dir).rows, history.rows, strict=True):
        clocks = {name for name in ours if name.startswith("seconds/") and name != "seconds/virtual"}
        assert {name for name in ours if ours[name] != theirs[name]} <= clocks
    best = min(row["metric_quantized"] for row in history.rows)
    assert logged.summary["metric_quantized"] == {"min": best}

    received, address = server
    said = sync(run_dir, address)
    assert set(received.runs) == {run_dir.name}, said
    rows = [received.history[at] for at in sorted(received.history)]
    assert sorted(received.history) == list(range(len(rows)))
    assert [row["round"] for row in rows if "seconds/virtual" in row] == list(range(7)), said
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert received.artifacts["model"][0] == "best"
    assert received.artifacts.keys() == {"model", "recipe", "study", "run_table"}


class TestWhatAKilledProcessLeaves:
    @pytest.fixture(scope="class")
    @staticmethod
    def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run with rounds 0 to 3 at W&B."""
        folder = write_logged_run(tmp_path_factory.mktemp("runs") / "20250101-120000-ab12", ROUNDS)
        log_offline(folder, ROUNDS[:4], "failed", monitor="val_accuracy", monitor_mode="max")
        return folder

    def test_a_record_cut_off_is_taken_off_anywhere(self, written: Path, tmp_path: Path) -> None:
        (whole,) = written.glob("wandb/offline-run-*/*.wandb")
        data, records, file = whole.read_bytes(), list(read_log(whole)), tmp_path / "run.wandb"
        assert mend(whole) == {0, 1, 2, 3}
        assert whole.read_bytes() == data, "nothing was cut off here"
        last: set[int] | None = None
        for cut in [*range(40), *range(40, len(data), 97), len(data) - 1]:
            file.write_bytes(data[:cut])
            before = list(read_log(file))
            rounds = mend(file)
            assert list(read_log(file)) == before == records[: len(before)]
            if rounds is not None:
                file.write_bytes(file.read_bytes() + data[file.stat().st_size :])
                assert list(read_log(file)) == records, "ends where the next record began"
                assert rounds >= (last or set())
            else:
                assert last is None
            last = rounds
        assert last == {0, 1, 2, 3}

    def test_damage_is_left_alone(self, written: Path, tmp_path: Path) -> None:
        (whole,) = written.glob("wandb/offline-run-*/*.wandb")
        data = bytearray(whole.read_bytes())
        data[data.rindex(b"metric_quantized", 0, len(data) - 300)] ^= 1
        file = tmp_path / "run.wandb"
        file.write_bytes(data)
        assert {0, 1} <= (mend(file) or set()) < {0, 1, 2, 3}
        assert file.read_bytes() == data

    @pytest.mark.parametrize("done", [1, 4], ids=["round 1 is done again", "rounds 2 and 3 are not"])
    def test_the_next_process_logs_what_is_missing(self, written: Path, tmp_path: Path, done: int) -> None:
        run_dir = Path(shutil.copytree(written, tmp_path / written.name))
        (first,) = run_dir.glob("wandb/offline-run-*/*.wandb")
        # Killed while it wrote round 2; and before, one that was killed before it wrote anything.
        content = first.read_bytes()
        first.write_bytes(content[: content.rindex(b"metric_quantized")])
        empty = first.parent.with_name(f"offline-run-20250101_120001-{run_dir.name}")
        empty.mkdir()
        (empty / first.name).write_bytes(b":W&B\xe1\xbe\x00")
        wait_for_another_folder()
        log = tracking.make_loggers(True, run_dir, "digits", SETTINGS, "val_accuracy", "max", ROUNDS[:done])
        for record in ROUNDS[done:]:
            tracking.log_round(log, record)
        tracking.finish(log, small_summary(ROUNDS), run_dir)
        assert not empty.exists()
        files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
        assert [mend(file) for file in files] == [{0, 1}, {2, 3, 4, 5, 6}]
        assert Logged(run_dir).rounds == list(range(7))


def loggers(kind: type[Logger], version: str | None) -> list[Logger]:
    return [kind(save_dir="logs", name="mine", version=version)]  # type: ignore[call-arg]


def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
    if record.round == 4:
        raise KeyboardInterrupt


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("version", ["one", None])
def test_csv_files_are_whole_and_there_while_the_run_goes_on(tmp_path: Path, version: str | None) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_run(loggers(CSVLogger, version), interrupt)
    (file,) = tmp_path.glob("logs/mine/*/metrics.csv")
    assert len(file.read_text().splitlines()) == 1 + 4
    (run_dir,) = tmp_path.glob("runs/*/*")
    small_run(loggers(CSVLogger, version), ckpt_path=run_dir)
    rows = list(csv.DictReader(max(tmp_path.glob("logs/mine/*/metrics.csv")).read_text().splitlines()))
    assert [row["step"] for row in rows] == [str(number) for number in range(7)]
    for row, ours in zip(rows, read_history(run_dir).rows, strict=True):
        assert {name: float(value) for name, value in row.items() if value and name != "step"} == ours
    assert "init_args" in max(tmp_path.glob("logs/mine/*/hparams.yaml")).read_text()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("version", ["one", None])
def test_tensorboard_has_every_round_once(tmp_path: Path, version: str | None) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        small_run(loggers(TensorBoardLogger, version), interrupt)
    (run_dir,) = tmp_path.glob("runs/*/*")
    small_run(loggers(TensorBoardLogger, version), ckpt_path=run_dir)
    found = EventAccumulator(str(max(tmp_path.glob("logs/mine/*"))))
    found.Reload()
    rows = read_history(run_dir).rows
    for name in rows[-1]:
        expected = [(int(row["round"]), pytest.approx(row[name])) for row in rows if name in row]
        assert [(event.step, event.value) for event in found.Scalars(name)] == expected, name
