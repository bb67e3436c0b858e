"""What peers.py and its contestants share: settings, fixed before the first real run; models and data; runs.

Nothing is imported but the standard library until a model or data are asked for: the driver has neither torch nor
NumPy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import DataLoader

ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).with_name("peers_contestants.py")
TIMEOUT_SECONDS, POLL_SECONDS = 1800, 0.5
# One thread a process; nothing leaves the machine; Ray's workers as urgent as everybody's (its default is nice 15, so
# that whatever else runs takes their time).
SETTINGS = {
    **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    **{"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"},
    **{"RAY_worker_niceness": "0"},
}

IMAGE, CLASSES = (3, 32, 32), 10
SCHEME = "w8a8"  # of ours in ptq and qat


@dataclass(frozen=True)
class Shape:
    """One setting: who trains what, and how long.

    Attributes:
        name: Of its model and data.
        clients: In all.
        examples: Of each client.
        cohort: Clients that train in one round.
        batch_size: Of a local step.
        epochs: Local passes over a client's examples in one round.
        learning_rate: Of local SGD.
        rounds: Measured, after one that warms up.
    """

    name: str
    clients: int
    examples: int
    cohort: int
    batch_size: int
    epochs: int
    learning_rate: float
    rounds: int

    @property
    def steps(self) -> int:
        """Local steps of one round."""
        return self.cohort * self.epochs * math.ceil(self.examples / self.batch_size)


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        requirements: What pip installs into it, torch excepted, which is the repository's for all.
        options: Of pip.
        package: Whose version the page tells.
    """

    requirements: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    package: str = "torch"


# A: `benchmarks/image_classification` of pfl-research, its `baseline.yaml`. B: `benchmarks/` of BlazeFL, its model CNN,
# with a fifth of its clients in a round.
SHAPES = {
    "A": Shape("A", 1000, 50, 50, 10, 1, 0.1, rounds=3),
    "B": Shape("B", 100, 500, 20, 50, 5, 0.1, rounds=2),
}
ENVIRONMENTS = {
    "bare": Environment(),
    "pfl": Environment(("pfl==0.6.0",), package="pfl"),
    "flower": Environment(("flwr[simulation]==1.42.0",), package="flwr"),
    # It asks for Python 3.12; its code needs nothing that 3.11 lacks, and one Python for all keeps torch the same.
    "blazefl": Environment(
        ("blazefl==2.0.3", "tqdm==4.67.1"), ("--ignore-requires-python", "--no-deps"), package="blazefl"
    ),
    "ours": Environment(("--editable", "."), package="fedhq-lightning"),
}
CONTESTANTS = ("bare", "pfl", "flower", "blazefl", "ours-fp", "ours-ptq", "ours-qat")
PROCESSES = (1, 2)
REPEATS, SEED = 5, 0
QUICK = {"A": Shape("A", 20, 20, 4, 10, 1, 0.1, rounds=1), "B": Shape("B", 4, 100, 4, 50, 1, 0.1, rounds=1)}
ACCURACY_ROUNDS, ACCURACY_SEEDS = 100, (0, 1, 2)


def environment_of(contestant: str) -> str:
    """Name of the environment in which a contestant runs."""
    return contestant.partition("-")[0]


def model_of(shape: Shape) -> nn.Sequential:
    """The shape's model, initialised from torch's global random numbers."""
    from torch import nn

    if shape.name == "A":  # pfl's simple_cnn, for images whose channels come first
        return nn.Sequential(
            *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
            *(nn.Flatten(), nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, CLASSES)),
        )
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)),
    )


@functools.cache
def kept_model(shape: Shape) -> nn.Sequential:
    """One model a process, for loops that overwrite its weights anyway."""
    return model_of(shape)


@functools.cache
def clients_of(shape: Shape, folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Images (examples, 3, 32, 32) float32 and labels (examples,) int64 of every client, mapped from files.

    The files are made where there are none. Pages that several processes read are in memory once.
    """
    import numpy as np
    import torch

    count = shape.clients * shape.examples
    names = [folder / f"{name}-{count}.npy" for name in ("images", "labels")]
    if not all(name.exists() for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(SEED)
        images: Any = random.standard_normal((count, *IMAGE), dtype=np.float32)
        for name, array in zip(names, (images, random.integers(CLASSES, size=count)), strict=True):
            made = name.with_suffix(f".{os.getpid()}.npy")
            np.save(made, array)
            made.replace(name)
    # Copy on write: torch warns of arrays that it may not write to.
    parts = (torch.split(torch.from_numpy(np.load(name, mmap_mode="c")), shape.examples) for name in names)
    return list(zip(*parts, strict=True))


def batches_of(shape: Shape, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled pass over a client's examples."""
    import torch

    for rows in torch.split(torch.randperm(len(labels)), shape.batch_size):
        yield images[rows], labels[rows]


def fit(shape: Shape, model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """The local fit of those who leave it to the user, in plain PyTorch; how many steps it took."""
    import torch
    from torch.nn import functional

    model.train()
    optimizer, steps = torch.optim.SGD(model.parameters(), lr=shape.learning_rate), 0
    for _ in range(shape.epochs):
        for x, y in batches_of(shape, images, labels):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            steps += 1
    return steps


def loader_of(shape: Shape, images: Tensor, labels: Tensor, generator: Any = None) -> DataLoader[Any]:
    """The fastest `DataLoader` for those who want one: shuffled, a whole batch taken at once."""
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    examples = TensorDataset(images, labels)
    sampler = BatchSampler(RandomSampler(examples, generator=generator), shape.batch_size, drop_last=False)
    return DataLoader(examples, sampler=sampler, batch_size=None, generator=generator)


class NotRunError(Exception):
    """An environment that could not be made, or a run that ended in an error; its text is the reason."""


def make_environment(name: str, folder: Path) -> Path:
    """The interpreter of a contestant's environment, made where it is not there as it is wanted.

    Raises:
        NotRunError: pip or venv did.
    """
    wanted, place = ENVIRONMENTS[name], folder / name
    python, mark = place / "bin" / "python", place / "made.json"
    common = [f"{package}=={pinned(package)}" for package in ("torch", "numpy")]
    description = json.dumps([common, dataclasses.asdict(wanted), str(ROOT) if name == "ours" else ""])
    if mark.exists() and mark.read_text(encoding="utf-8") == description:
        return python
    print(f"making the environment of {name} ...", flush=True)
    constraints = ["--constraint", str(ROOT / "constraints.txt")] if name == "ours" else []
    commands = [[sys.executable, "-m", "venv", "--clear", str(place)], [str(python), "-m", "pip", "install", *common]]
    if wanted.requirements:
        # torch and NumPy are named again, so that no peer replaces them by others.
        again = [] if "--no-deps" in wanted.options else common
        commands.append([*commands[1][:4], *wanted.options, *constraints, *wanted.requirements, *again])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise NotRunError(f"not installed: {reason(done.stderr)}")
    mark.write_text(description, encoding="utf-8")
    return python


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    (version,) = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return str(version)


def reason(errors: str, limit: int = 200) -> str:
    """The line of an error output that tells most, without places of this machine."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"ERROR: |(\w+\.)*\w*(Error|Exception|Failed)\b", line)]
    text = (telling or lines or ["no message"])[-1]
    return re.sub(r"(\w+://|/)[^\s'\")]*", "...", text).replace("|", "/")[:limit]


def run(python: Path, contestant: str, shape: Shape, processes: int, data: Path, more: tuple[str, ...] = ()) -> Any:
    """One run; what it printed, as `parsed` reads it, with its peak memory.

    Raises:
        NotRunError: It ended in an error, took too long or printed too little.
    """
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        scratch = Path(name)
        task = [contestant, json.dumps(dataclasses.asdict(shape)), str(processes), str(data), name, *more]
        command = [str(python), *launcher(contestant, processes), str(SCRIPT), *task]
        environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(SCRIPT.parent), "FLWR_HOME": name}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process would compile its imports anew
        if more:
            environment.pop("HF_HUB_OFFLINE")
        started = time.time()
        with (scratch / "output").open("w") as output, (scratch / "errors").open("w") as errors:
            process = subprocess.Popen(command, stdout=output, stderr=errors, cwd=name, env=environment)
            peak = watch(process)
        if process.returncode:
            late = f"stopped after {TIMEOUT_SECONDS} s" if time.time() - started >= TIMEOUT_SECONDS else ""
            raise NotRunError(late or reason((scratch / "errors").read_text(errors="replace")))
        return {**parsed((scratch / "output").read_text(errors="replace"), started, shape.rounds), "peak_bytes": peak}


def launcher(contestant: str, processes: int) -> list[str]:
    """By torchrun where several processes are its business; the others start theirs themselves."""
    if processes == 1 or contestant not in ("bare", "pfl"):
        return []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = [f"--nproc-per-node={processes}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return ["-m", "torch.distributed.run", *where]


def parsed(output: str, started: float, rounds: int) -> dict[str, Any]:
    """What a contestant's lines come to.

    Args:
        output: Its standard output; lines of other origin are passed over.
        started: When its process was started, seconds since the epoch.
        rounds: Measured; one more comes before them.

    Returns:
        `startup_seconds`, up to the first round's begin; `seconds` of every measured round, as process 0 took them;
        `steps` of every round, over all processes; `parameters`; what else was told.

    Raises:
        NotRunError: No begin, or another number of rounds.
    """
    events = []
    for line in output.splitlines():
        _, mark, rest = line.partition('{"rank"')
        if mark:
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(mark + rest))
    mine = [each for each in events if each["rank"] == 0]
    begins = [each for each in mine if each["event"] == "begin"]
    seconds = [each["seconds"] for each in mine if each["event"] == "round"]
    if len(begins) != 1 or len(seconds) != 1 + rounds:
        raise NotRunError(f"{len(seconds)} of {1 + rounds} rounds were reported")
    steps: dict[int, list[int]] = defaultdict(list)
    for each in events:
        if each["event"] == "round":
            steps[each["rank"]].append(each["steps"])
    told = {key: value for each in mine if each["event"] == "value" for key, value in each.items()}
    return {
        "startup_seconds": begins[0]["time"] - started,
        "seconds": seconds[1:],
        "steps": [sum(counts) for counts in zip(*steps.values(), strict=True)],
        "parameters": begins[0]["parameters"],
        **{key: value for key, value in told.items() if key not in ("rank", "event")},
    }


def watch(process: subprocess.Popen[Any]) -> int:
    """Wait for a process, end what it leaves behind, and tell the peak memory of it and all below it, in bytes.

    That is the sum of the proportional set sizes: resident pages, those that processes share counted once.
    """
    peak, seen, started = 0, dict[int, str](), time.time()
    while process.poll() is None:
        below = processes_below(process.pid)
        seen |= below
        peak = max(peak, sum(map(proportional_bytes, below)))
        if time.time() - started > TIMEOUT_SECONDS:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
    for pid, born in seen.items():
        # A number that went to another process since has another start time.
        if stat_of(pid)[1] == born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return peak


def processes_below(root: int) -> dict[int, str]:
    """A process and its descendants, each with its start time."""
    children, born = defaultdict[int, list[int]](list), dict[int, str]()
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        parent, born[pid] = stat_of(pid)
        children[parent].append(pid)
    found = [root]
    for pid in found:
        found += children[pid]
    return {pid: born.get(pid, "") for pid in found}


def stat_of(pid: int) -> tuple[int, str]:
    """A process's parent and start time; 0 and nothing where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, ""
    return int(fields[1]), fields[19]


def proportional_bytes(pid: int) -> int:
    """Proportional set size of one process; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(1024 * int(size) for size in re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE))
