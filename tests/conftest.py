"""What every test runs under: one thread, no network, a home and a working directory of its own."""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .no_report import leave_out_report

# Before anything imports torch or a library that reads these once; subprocesses of tests inherit them.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        # Lines of processes that share a pipe come apart with it, so that one which is not written whole is found.
        "PYTHONUNBUFFERED": "1",
    }
)
# A user's own settings must decide no test.
for _name in [name for name in os.environ if name.startswith(("FEDHQ_", "JSONARGPARSE_", "LIGHTNING_", "XDG_"))]:
    del os.environ[_name]
for _name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_DIR", "HF_HOME", "HF_TOKEN"):
    os.environ.pop(_name, None)

# Absolute, since tests change the working directory: interpreters that tests start see this checkout, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [
        str(Path(__file__).parents[1]),
        *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))),
    ]
)

# Kernels are built once per machine, not once per test process.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions"))
_home = tempfile.TemporaryDirectory(prefix="fedhq-home-", ignore_cleanup_errors=True)
os.environ["HOME"] = _home.name


# Those that take long come first: begun last, one worker would end alone with them. Those that mostly wait for other
# processes stand each between two that compute.
_FIRST = (
    *("cli/test_main", "deploy/test_export", "profiling/test_profile_host"),
    *("trainer/test_processes", "compatibility/test_federated", "test_docs"),
    *("silos/test_silos", "callbacks/test_quantized_training", "experiments/test_comparison"),
    *("test_examples", "cli/test_bad_input", "quantize/test_central_training"),
    *("experiments/test_run_study", "quantize/test_qat_layers", "trainer/test_resume"),
    *("trainer/test_analysis", "trainer/test_extend", "benchmarks/test_stability"),
    *("deploy/test_model_folder", "compatibility/test_callbacks", "trainer/test_options"),
    *("testing/test_contracts", "benchmarks/test_allocator_time", "report/test_report_browser"),
    *("tracking/test_resume", "cli/test_evaluate_model", "compatibility/test_both_packages"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first, in their order; else the order stays. Slow tests have an hour each."""
    folder = Path(__file__).parent
    places = {folder / f"{name}.py": place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))


def _is_local(address: object) -> bool:
    """True for Unix sockets (a path) and for the loopback, where Gloo and W&B's own service listen."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    return host in ("localhost", "::1", "") or host.startswith("127.")


@pytest.fixture
def torch_kernels() -> Iterator[None]:
    """The lanes compute with torch alone, as on a host that cannot build kernels of our own."""
    from fedhq_lightning.quantize.native.lanes import kernels_of_torch

    with kernels_of_torch():
        yield


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell that starts tests in the background has them and their subprocesses ignore Ctrl-C."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    """What a launch leaves in the environment would make later ones wait for processes that nobody starts."""
    launched = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in launched}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """A test that reaches for the network fails at once instead of hanging or, worse, passing only online."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if not _is_local(address):
            raise OSError(f"tests have no network: refused to connect to {address}")
        connect(self, address)  # type: ignore[arg-type]  # passed through as given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What a file needs to outlast a power cut takes milliseconds a file, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A run sets torch's thread count for the whole process: put it back. Tests without torch do not pay for it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_working_directory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write under the working directory; none may write into the checkout or see another test's.

    It is `tmp_path` for those that ask for it; the others have one that takes less to make.
    """
    is_asked_for = "tmp_path" in request.fixturenames
    monkeypatch.chdir(request.getfixturevalue("tmp_path") if is_asked_for else tempfile.mkdtemp(dir=_home.name))


class Warned(logging.Handler):
    """Keeps the warnings that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def warned() -> Iterator[Warned]:
    """What is logged from here on. In place of pytest's `caplog`, which takes its time in every test that there is."""
    handler = Warned()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the report and the measurement of the deployed model's speed, for runs that are about something else."""
    from fedhq_lightning.finish import complete

    leave_out_report(monkeypatch)
    monkeypatch.setattr(complete, "_inference", lambda *arguments: None)


@pytest.fixture
def no_program(no_report: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `model.pt2` too: the deployed model is packed."""
    from fedhq_lightning.deploy import ExportError, model_folder

    def left_out(*arguments: object) -> None:
        raise ExportError("left out")

    monkeypatch.setattr(model_folder, "export_program", left_out)
