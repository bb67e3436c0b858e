"""The machine a benchmark ran on, in a few lines."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

# What decides which matrix kernels a processor has; x86 first, then Arm.
FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def describe(threads: int, accelerator: str = "cpu") -> str:
    """A Markdown list: processor, accelerator, versions, compiler."""
    name, flags = processor(Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
    lines = [
        f"processor: {name}, {os.cpu_count()} cores, {platform.machine()}; {', '.join(flags) or 'no flags known'}; "
        f"torch uses {torch.backends.cpu.get_cpu_capability()}",
        f"threads: {threads}",
        f"torch {torch.__version__}, torchao {version('torchao')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release().split('-')[0]}",
        f"compiler: {compiler()}",
    ]
    if accelerator == "cuda":
        major, minor = torch.cuda.get_device_capability()
        lines.insert(
            1, f"GPU: {torch.cuda.get_device_name()}, compute capability {major}.{minor}, CUDA {torch.version.cuda}"
        )
    return "\n".join(f"- {line}" for line in lines)


def processor(cpuinfo: str) -> tuple[str, list[str]]:
    """Name and telling flags of the first processor in the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or "unknown"
    # Virtual machines shorten the name; family and model still tell the generation.
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return name, [flag for flag in FLAGS if flag in present]


def compiler() -> str:
    """First line of `--version` of the C++ compiler that torch.compile would call."""
    for command in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if path := shutil.which(command):
            return subprocess.run([path, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    return "none"
