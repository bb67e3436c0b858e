"""Loading the kernels, and which tensors they take."""

import os
import warnings
from collections.abc import Callable, Iterable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.quantize.native.build import LEVELS, BuildError, built_library

OFF = "off"
VARIABLE = "FEDHQ_KERNELS"
"""Environment variable: a level of `LEVELS`, or `off` for the kernels that torch compiles. For tests and for looking
into a difference; the bits are the same."""
_MOST_TAPS = 1024
_LONGEST = 65536
"""Rows and inputs of a layer up to which no sum leaves 32 bits: as `integer_matmul.MAX_INNER_SIZE`."""


@cache
def native_level() -> str | None:
    """The level whose kernels compute on this host, built at the first call; None where none does.

    Warns where kernels cannot be built, and where a level's results are wrong.

    Raises:
        ConfigurationError: `FEDHQ_KERNELS` names no level, or one that this processor lacks.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in (*LEVELS, OFF):
        allowed = [*LEVELS, OFF]
        raise ConfigurationError(f"{VARIABLE} {wanted!r}: allowed are {', '.join(allowed)}{nearest(wanted, allowed)}")
    if wanted == OFF or not has_compiler() or _leaves_products_to_onednn(wanted):
        return None
    try:
        torch.ops.load_library(str(built_library()))
    except (BuildError, OSError) as error:
        warnings.warn(f"the int8 kernels are not built ({error}): slower ones compute", stacklevel=2)
        return None
    built: list[str] = torch.ops.fedhq.levels()
    if wanted and wanted not in built:
        raise ConfigurationError(f"{VARIABLE} {wanted!r}: this processor has {', '.join(built)}")
    for level in [wanted] if wanted else built:
        torch.ops.fedhq.use_level(level)
        if level == built[-1] or _agrees(level, built[-1]):
            return level
        warnings.warn(f"the {level} kernels fail their test on this processor: slower ones compute", stacklevel=2)
    return None


def _leaves_products_to_onednn(wanted: str) -> bool:
    """AMX multiplies tiles faster than any level here."""
    return not wanted and bool(torch.cpu.get_capabilities().get("amx_int8", False))


def native(x: Tensor, *others: Tensor | None) -> Any | None:
    """The operators of `csrc/lanes.cpp`, where they take these tensors; None where others compute.

    They take float32 on the CPU, one thread, no autocast; a tracer (torch.export, a user's torch.compile) gets plain
    operations.
    """
    if x.dtype is not torch.float32 or not x.is_cpu or type(x) not in _PLAIN:
        return None
    for each in others:
        if each is not None and (each.dtype is not torch.float32 or type(each) not in _PLAIN or not each.is_cpu):
            return None
    if torch.get_num_threads() != 1 or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active() or native_level() is None:
        return None
    return torch.ops.fedhq


def with_native(name: str, bits: int, kernel: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A kernel over rows (rows, size) that the operator `name` computes where it takes them, with the same bits."""

    @wraps(kernel)
    def call(rows: Tensor) -> Any:
        if rows.numel() == 0 or (kernels := native(rows)) is None:
            return kernel(rows)
        return getattr(kernels, name)(rows.detach(), bits)

    call.__wrapped__ = getattr(kernel, "__wrapped__", kernel)  # the reference, for tests
    return call


def takes_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether the sums of a linear layer stay within the 32 bits that the kernels add in: (..., in) and (out, in)."""
    out, inner = weight.shape
    return 0 < inner <= _LONGEST and 0 < out <= _LONGEST and 0 < x.numel() <= _LONGEST * inner


_PLAIN = (Tensor, torch.nn.Parameter)


def takes_images(weight: Tensor) -> bool:
    """Whether the sums of a convolution stay within 32 bits, forward and backward: (out, channels, height, width)."""
    out, channels, height, width = weight.shape
    area = height * width
    return 0 < area <= _MOST_TAPS and max(out, channels) * area <= _LONGEST and min(out, channels) > 0


def _agrees(level: str, reference: str) -> bool:
    """Whether two levels give the same bits, on layers of even and odd sizes with all kinds of values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return all(_same(case, level, reference) for case in _cases())


def _same(case: Callable[[], list[Tensor]], level: str, reference: str) -> bool:
    results = []
    for each in (reference, level):
        torch.ops.fedhq.use_level(each)
        results.append(case())
    return all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def _cases() -> Iterable[Callable[[], list[Tensor]]]:
    ops = torch.ops.fedhq
    for rows, inner, out in ((1, 1, 1), (5, 7, 3), (37, 100, 33), (64, 64, 64), (129, 65, 50)):
        x, weight, bias = torch.randn(rows, inner) ** 3, torch.randn(out, inner), torch.randn(out)
        x[0] = 0
        gradient = torch.randn(rows, out)
        for arguments in ((), (2, 8, None), (4, 8, None), (8, 4, torch.float32)):
            layer = ops.grid_linear if arguments else ops.int8_linear

            def trained(
                layer: Any = layer, arguments: Any = arguments, given: Any = (x, weight, bias), gradient: Any = gradient
            ) -> list[Tensor]:
                leaves = [each.clone().requires_grad_() for each in given]
                output = layer(*leaves, *arguments)
                return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]

            yield trained
