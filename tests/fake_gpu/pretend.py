"""A GPU that is none, for tests of what runs on GPUs, on machines without one.

Called before torch is imported, `pretend` has torch find one CUDA device, whose kernels compute on the CPU
(`device.cpp`). What is on it is on no CPU: an operation that is given tensors of both fails as it does on a GPU, and so
do `numpy` of one and products of int8 in shapes that CUDA refuses. Not there are memory of its own, streams, compiled
kernels, and the last bits of what a GPU's float kernels add up.

As a plugin (`python -m pytest -p tests.fake_gpu.pretend -m gpu`) it runs tests that are for GPUs.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from filelock import FileLock

_SOURCE = Path(__file__).with_name("device.cpp")


def _built() -> Path:
    """The library, compiled once per machine."""
    program, spec = shutil.which(os.environ.get("CXX", "g++")), find_spec("torch")
    assert program is not None
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent
    parts = (_SOURCE.read_bytes(), version("torch").encode(), str(home).encode(), program.encode())
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    library = cache / "fedhq_lightning" / f"fake_gpu-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            include = [f"-I{home / 'include' / each}" for each in ("", "torch/csrc/api/include")]
            link = [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"]
            unfinished = library.with_suffix(".new")
            command = [program, "-O1", "-std=c++20", "-shared", "-fPIC", *include, str(_SOURCE), *link]
            subprocess.run([*command, "-o", str(unfinished)], check=True)
            unfinished.replace(library)
    return library


def pretend() -> None:
    """Have torch find it, for the rest of this process."""
    assert "torch" not in sys.modules, "torch asks once what there is"
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    ctypes.CDLL(str(_built()), ctypes.RTLD_GLOBAL)
    import torch

    answers: dict[str, Any] = {
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": "a GPU that is none",
        "get_device_properties": SimpleNamespace(major=9, minor=0, total_memory=2**34),
        **dict.fromkeys(("_lazy_init", "set_device", "synchronize", "empty_cache", "manual_seed", "manual_seed_all")),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.default_generators = (torch.Generator(),)
    for place in (torch.cuda, torch.cuda.random):
        place.get_rng_state = lambda device="cuda": torch.cuda.default_generators[0].get_state()
        place.set_rng_state = lambda state, device="cuda": torch.cuda.default_generators[0].set_state(state)
        place.get_rng_state_all = lambda: [torch.cuda.get_rng_state()]
        place.set_rng_state_all = lambda states: torch.cuda.set_rng_state(states[0])
    torch.cuda.Event = _Event
    clone = torch.UntypedStorage.clone

    def clone_anywhere(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if storage.device.type == "cpu":
            return clone(storage)
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).clone().untyped_storage()

    torch.UntypedStorage.clone = clone_anywhere


class _Event:
    """A moment; everything before it is done."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, later: _Event) -> float:
        return (later.seconds - self.seconds) * 1e3


def pytest_load_initial_conftests() -> None:
    """Before anything is imported that imports torch."""
    pretend()
