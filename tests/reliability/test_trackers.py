"""Loggers are guests: what raises, blocks or is not there neither ends a run nor holds it up, nor changes a bit."""

import http.server
import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.cli.main import main
from fedhq_lightning.run.logged_history import read_history

from ..programs import Program
from ..small_recipe import SMALL, write_recipe
from ..trainer.conftest import make_quick
from .test_signals import AS_MODULE, nothing_runs, only_run, until, weights

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a logger."""
    folder = tmp_path_factory.mktemp("whole")
    write_recipe(folder / "mine.yaml")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        assert main(["run", str(folder / "mine.yaml"), f"--trainer.default_root_dir={folder}"]) == 0
    return only_run(folder)


@pytest.mark.parametrize("method", ["log_hyperparams", "log_metrics", "save", "finalize"])
def test_a_logger_that_raises(
    method: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quick(monkeypatch)
    logger = {"class_path": "tests.bad_loggers.Bad", "init_args": {"method": method}}
    write_recipe(tmp_path / "mine.yaml", {"trainer.logger": logger})
    assert main(["run", "mine.yaml"]) == 0
    assert capsys.readouterr().err == (
        "fedhq: warning: Bad failed, and the run goes on without what it would have logged (OSError: [Errno 28] No "
        "space left on device; said once; rounds.jsonl has all rounds)\n"
    )
    assert weights(only_run(tmp_path / "runs")) == weights(whole)


@pytest.mark.parametrize("method", ["log_hyperparams", "log_metrics", "finalize"])
def test_a_logger_that_hangs(
    method: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quick(monkeypatch)
    monkeypatch.setattr("fedhq_lightning.tracking.loggers._SECONDS_TO_OPEN", 0.5)
    monkeypatch.setattr("fedhq_lightning.tracking.loggers._SECONDS_TO_CLOSE", {"success": 0.5, "failed": 0.1})
    logger = {"class_path": "tests.bad_loggers.Bad", "init_args": {"method": method, "seconds": 60}}
    write_recipe(tmp_path / "mine.yaml", {"trainer.logger": logger})
    began = time.monotonic()
    assert main(["run", "mine.yaml"]) == 0
    assert time.monotonic() - began < 30
    assert "(it has not answered for 0.5 s; said once" in capsys.readouterr().err
    assert weights(only_run(tmp_path / "runs")) == weights(whole)


def test_a_logger_that_comes_back_late_leaves_warnings_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quick(monkeypatch)
    monkeypatch.setattr("fedhq_lightning.tracking.loggers._SECONDS_TO_OPEN", 0.1)
    monkeypatch.setattr("fedhq_lightning.tracking.loggers._SECONDS_TO_CLOSE", {"success": 0.1, "failed": 0.1})
    released, is_back = threading.Event(), threading.Event()
    monkeypatch.setattr("tests.bad_loggers.Bad.log_hyperparams", lambda *_, **__: released.wait(60))
    monkeypatch.setattr("tests.bad_loggers.Bad.log_metrics", lambda *_, **__: is_back.set())
    write_recipe(
        tmp_path / "mine.yaml", {"trainer.logger": {"class_path": "tests.bad_loggers.Bad", "init_args": {"method": ""}}}
    )
    assert main(["run", "mine.yaml"]) == 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        released.set()
        assert is_back.wait(60)
        warnings.warn("of a later run", stacklevel=1)
    assert [str(each.message) for each in said] == ["of a later run"]


def own_wandb() -> dict[str, str]:
    """The environment, but for the process of W&B that another test may have left here."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


class Refuses(http.server.BaseHTTPRequestHandler):
    """A server that answers nothing but an error."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.code)  # type: ignore[attr-defined]  # given below
        self.end_headers()

    do_GET = do_POST  # noqa: N815 (the base class's names)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def server(how: str) -> Iterator[int]:
    """The port of one that refuses with an HTTP error, says nothing, or is not there."""
    if how in ("silent", "absent"):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            if how == "silent":
                listening.listen()
            yield listening.getsockname()[1]
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as refusing:
        refusing.code = int(how)  # type: ignore[attr-defined]
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        yield refusing.server_port
        refusing.shutdown()


@pytest.mark.parametrize(
    "how",
    [
        "absent",
        *(pytest.param(each, marks=pytest.mark.corner) for each in ("401", "silent")),
        pytest.param("500", marks=pytest.mark.slow),
    ],
)
def test_wandb_that_cannot_be_used_is_offline(how: str, whole: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mine.yaml", {"trainer.logger": True})
    with server(how) as port:
        online = {"WANDB_MODE": "online", "WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
        program = Program(*AS_MODULE, "run", "mine.yaml", env={**own_wandb(), **online}, start_new_session=True)
        try:
            _, errors = program.communicate(120)
        finally:
            program.kill()
    run_dir = only_run(tmp_path / "runs")
    [folder] = (run_dir / "wandb").glob("offline-run-*")
    assert program.returncode == 0, errors
    words = r"fedhq: warning: W&B cannot be used now, so this run is logged offline \(.*\); upload it later with: "
    own = "".join(line for line in errors.splitlines(keepends=True) if not line.startswith("wandb: [wandb.login()]"))
    assert re.fullmatch(f"{words}wandb sync {folder.relative_to(tmp_path)}\n", own), errors
    assert [row["round"] for row in read_history(run_dir / "wandb").rows] == [0, 1, 2]
    assert weights(run_dir) == weights(whole)
    assert nothing_runs(program.pid)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.corner), signal.SIGSTOP])
def test_wandbs_own_process_is_gone(number: signal.Signals, whole: Path, tmp_path: Path) -> None:
    waits = {"class_path": "tests.bad_loggers.Waits"}
    callbacks = [*SMALL["trainer"]["callbacks"], waits]
    write_recipe(tmp_path / "mine.yaml", {"trainer.logger": True, "trainer.callbacks": callbacks})
    program = Program(*AS_MODULE, "run", "mine.yaml", env=own_wandb(), start_new_session=True)
    try:
        until((tmp_path / "saved").exists)
        [service] = [each for each in children(program.pid) if (each / "comm").read_text().startswith("wandb")]
        os.kill(int(service.name), number)
        (tmp_path / "go on").touch()
        began = time.monotonic()
        _, errors = program.communicate(60)
    finally:
        program.kill()
    assert time.monotonic() - began < 40
    assert program.returncode == 0, errors
    assert errors.count("\n") == 1
    assert errors.startswith(
        "fedhq: warning: WandbLogger failed, and the run goes on without what it would have logged"
    )
    assert weights(only_run(tmp_path / "runs")) == weights(whole)
    assert nothing_runs(program.pid)


def children(parent: int) -> list[Path]:
    """Folders in /proc of the processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(stat.parent)
    return found
