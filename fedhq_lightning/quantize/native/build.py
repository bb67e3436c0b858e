"""The library of kernels: compiled once per machine, by the compiler that torch would call too, and kept on disk."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import torch

from fedhq_lightning.quantize.compilation import compiler
from fedhq_lightning.support.phase_clock import phase_of_run
from fedhq_lightning.support.setup_notice import setting_up

LEVELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "avx512_vnni": (
        ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni", "fma3"),
        (
            *("-DFEDHQ_AVX512_VNNI", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"),
            "-mprefer-vector-width=512",
        ),
    ),
    "avx_vnni": (("avx2", "avx_vnni", "fma3"), ("-DFEDHQ_AVX_VNNI", "-mavx2", "-mavxvnni", "-mfma")),
    "avx2": (("avx2", "fma3"), ("-DFEDHQ_AVX2", "-mavx2", "-mfma")),
    "neon_dot": (("dot",), ("-DFEDHQ_NEON_DOT", "-march=armv8.2-a+dotprod")),
    "scalar": ((), ("-O1",)),  # only compared with: compiled sooner
}
"""Level, best first, to what the processor must have, in `torch.cpu.get_capabilities`' words, and the compiler's flags.
The last is the reference."""

_SAME_BITS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")  # and never -ffast-math


class BuildError(Exception):
    """The kernels could not be compiled."""


def levels_of_this_processor() -> list[str]:
    """Levels whose instructions it has, best first."""
    has = torch.cpu.get_capabilities()
    return [name for name, (needed, _) in LEVELS.items() if all(has.get(each, False) for each in needed)]


def built_library() -> Path:
    """The library for this processor, this torch and this compiler; made at the first call on a machine.

    Returns:
        A shared library that `torch.ops.load_library` takes.

    Raises:
        BuildError: There is no compiler, it fails, or nothing can be written.

    It is kept where torch keeps its extensions: `TORCH_EXTENSIONS_DIR`, else `~/.cache/torch_extensions`.
    """
    from filelock import FileLock

    program = compiler()
    if program is None:
        raise BuildError("no C++ compiler")
    levels = levels_of_this_processor()
    try:
        folder = _cache() / _fingerprint(program, levels)
        library = folder / "fedhq_lanes.so"
        if library.exists():
            return library
        folder.mkdir(parents=True, exist_ok=True)
        notice = setting_up("the int8 kernels, once per machine: about half a minute")
        with FileLock(folder / "lock"), notice, phase_of_run("compile"):
            if not library.exists():
                _compile(program, levels, library)
    except OSError as error:
        raise BuildError(str(error)) from error
    return library


def _cache() -> Path:
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return (Path(given) if given else Path.home() / ".cache" / "torch_extensions") / "fedhq_lightning"


def _fingerprint(program: str, levels: Sequence[str]) -> str:
    """What a library depends on."""
    digest = hashlib.sha256()
    version = subprocess.run(
        [program, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=False
    ).stdout
    for word in (torch.__version__, platform.machine(), version, *levels, repr(LEVELS), repr(_SAME_BITS)):
        digest.update(f"{word}\n".encode())
    for source in sorted(files(__package__).joinpath("csrc").iterdir(), key=lambda each: each.name):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(program: str, levels: Sequence[str], library: Path) -> None:
    torch_home = Path(torch.__file__).parent
    include = [f"-I{torch_home / 'include'}", f"-I{torch_home / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        sources = work / "csrc"
        sources.mkdir()
        for source in files(__package__).joinpath("csrc").iterdir():
            (sources / source.name).write_bytes(source.read_bytes())
        listed = " ".join(f"FEDHQ_LEVEL({level})" for level in levels)
        # The longest first.
        jobs = [
            ("lanes", ["-O1", "-std=c++20", *include, "-c", str(sources / "lanes.cpp")]),
            *(
                (level, ["-O3", "-std=c++17", *_SAME_BITS, *LEVELS[level][1], f"-DLEVEL={level}", "-c",
                         str(sources / "kernels.cpp")])
                for level in levels
            ),
            ("levels", ["-O2", "-std=c++17", f"-DFEDHQ_LEVELS={listed}", "-c", str(sources / "levels.cpp")]),
            ("scratch", ["-O2", "-std=c++17", "-c", str(sources / "scratch.cpp")]),
        ]  # fmt: skip
        objects = [work / f"{job}.o" for job, _ in jobs]
        commands = [[program, "-fPIC", *flags, "-o", str(to)] for (_, flags), to in zip(jobs, objects, strict=True)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        linked = work / library.name
        libraries = [f"-L{torch_home / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
        _run([program, "-shared", *map(str, objects), *libraries, "-o", str(linked)])
        # Whole or not at all, for processes that look without the lock.
        arrived = library.with_suffix(".new")
        shutil.copyfile(linked, arrived)
        arrived.replace(library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(lines[0].strip() if lines else f"{command[0]} ended with {done.returncode}")
