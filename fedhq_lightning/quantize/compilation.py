"""Kernels that `torch.compile` fuses where a compiler is found.

An integer product takes a fraction of a layer's time; finding scales, rounding and rescaling take the rest, and eager
mode would pass over memory several times for each. A kernel is compiled once per process, for any sizes, and torch
keeps it on disk for the next process. Inputs that are small are computed in eager mode: the same bits, and small models
never wait for a compiler.
"""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, wraps
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedhq_lightning.support.phase_clock import phase_of_run
from fedhq_lightning.support.quiet import libraries_quiet

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

SMALL = 2**13
"""Elements below which calling a compiled function costs more than it saves."""
_AS_EAGER = {"eager_numerics.division_rounding": True}
_AS_EAGER_ON_GPUS = {**_AS_EAGER, "eager_numerics.disable_ftz": True, "emulate_precision_casts": True}
"""What keeps eager mode's bits. On GPUs the compiler would approximate division, flush the smallest numbers to zero
and, but for the last option, round a product and a sum as one."""
_VARIANTS = 32  # dtypes, memory formats and sizes of one are variants of a kernel; beyond these it runs in eager mode


def compiler() -> str | None:
    """The C++ compiler that `torch.compile` would call, as a path; None where there is none."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX", default))


@cache
def has_compiler() -> bool:
    """Whether this host has the C++ compiler that `torch.compile` would call."""
    return compiler() is not None


@cache
def can_compile() -> bool:
    """Whether kernels can be compiled on this host; warns once where they cannot."""
    if not has_compiler():
        warnings.warn(
            "no C++ compiler on this host: kernels of the int8 lanes cannot be built, so PTQ trains in floating point "
            "and QAT takes several passes over memory; install one (Debian, Ubuntu: apt-get install g++)",
            stacklevel=2,
        )
    return has_compiler()


@cache
def _load_quietly() -> None:
    """Load what compiles: it says aloud that it found a CUDA toolkit where there is no GPU."""
    with libraries_quiet("torch.utils.cpp_extension", level=logging.ERROR):
        import_module("torch.utils.cpp_extension")


def compiled(function: Kernel) -> Kernel:
    """Compile a function, whose first argument is a tensor, at its first large call.

    Where torch cannot compile it, a warning says so, and it stays in eager mode.
    """
    fused: dict[str, Callable[..., Any]] = {}  # by kind of device
    has_failed = False

    @wraps(function)
    def call(x: Tensor, *arguments: Any) -> Any:
        nonlocal has_failed
        # A tracer (torch.export, a user's torch.compile) takes the function as it is.
        if has_failed or torch.compiler.is_compiling() or x.numel() < SMALL or not can_compile():
            return function(x, *arguments)
        kind = x.device.type
        is_first = kind not in fused
        if is_first:
            _load_quietly()
            options = _AS_EAGER_ON_GPUS if kind == "cuda" else _AS_EAGER
            fused[kind] = torch.compile(function, dynamic=True, recompile_limit=_VARIANTS, options=options)  # type: ignore[call-overload]  # the overloads lack it
        from torch._dynamo.exc import TorchDynamoException

        try:
            # Without their history: gradients are ours to compute, and dynamo would look for theirs.
            with phase_of_run("compile") if is_first else nullcontext():
                return fused[kind](x.detach(), *(a.detach() if isinstance(a, Tensor) else a for a in arguments))
        except TorchDynamoException as error:
            has_failed = True
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"kernel {function.__name__} is not compiled ({reason}): it runs slower", stacklevel=2)
            return function(x, *arguments)

    return call  # type: ignore[return-value]  # the same signature
