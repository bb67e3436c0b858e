"""Loading the kernels, and which tensors they take."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.quantize.native.build import LEVELS, BuildError, built_library

OFF = "off"
VARIABLE = "FEDHQ_KERNELS"
"""Environment variable: a level of `LEVELS`, or `off` for the kernels that torch compiles. For tests and for looking
into a difference; the bits are the same."""
_MOST_TAPS = 1024
_WITH_BYTES = ("avx512_vnni", "avx_vnni", "neon_dot")
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
    if wanted == OFF or not has_compiler():
        return None
    try:
        torch.ops.load_library(str(built_library()))  # type: ignore[no-untyped-call]  # untyped in torch
    except (BuildError, OSError) as error:
        warnings.warn(f"the int8 kernels are not built ({error}): slower ones compute", stacklevel=2)
        return None
    built: list[str] = torch.ops.fedhq.levels()
    if wanted and wanted not in built:
        raise ConfigurationError(f"{VARIABLE} {wanted!r}: this processor has {', '.join(built)}")
    reference = built[-1]
    if wanted == reference:
        torch.ops.fedhq.use_level(reference)
        return reference
    # The reference itself is slower than what torch compiles.
    for level in [wanted] if wanted else built[:-1]:
        if _agrees(level, reference):
            torch.ops.fedhq.use_level(level)
            return level
        warnings.warn(f"the {level} kernels fail their test on this processor: slower ones compute", stacklevel=2)
    return None


@cache
def multiplies_bytes() -> bool:
    """Whether the level has instructions that multiply bytes, several times as fast as fp32's."""
    return native_level() in _WITH_BYTES


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
    if _switched_off or torch._C._are_functorch_transforms_active() or native_level() is None:
        return None
    return torch.ops.fedhq


def level_on(device: torch.device) -> str | None:
    """The level whose kernels compute on a device, with the threads and the precision of now; None where torch's do."""
    return None if native(torch.empty(1, device=device)) is None else native_level()


@contextmanager
def kernels_of_torch() -> Iterator[None]:
    """Have torch compute what these kernels would: for comparisons, and where a test replaces what they do."""
    _switched_off.append(True)
    try:
        yield
    finally:
        _switched_off.pop()


def native_without_gradients(x: Tensor, *others: Tensor | None) -> Any | None:
    """As `native`, for operators that have no gradient: None where one would be wanted of `x`."""
    return None if x.requires_grad and torch.is_grad_enabled() else native(x, *others)


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
_switched_off: list[bool] = []


def takes_images(x: Tensor, weight: Tensor, padding: Sequence[int]) -> bool:
    """Whether the sums of a convolution stay within 32 bits, forward and backward.

    Args:
        x: (batch, channels, height, width).
        weight: (out, channels, kernel height, kernel width).
        padding: Left, right, top, bottom.
    """
    out, channels, height, width = weight.shape
    left, right, top, bottom = padding
    area, pixels = height * width, (x.shape[2] + top + bottom) * (x.shape[3] + left + right)
    return 0 < area <= _MOST_TAPS and 0 < max(out, channels) * area <= _LONGEST and 0 < pixels <= _LONGEST


def _agrees(level: str, reference: str) -> bool:
    """Whether two levels give the same bits, on layers of even and odd sizes with all kinds of values."""
    results = []
    # Whatever mode the caller computes in, and counts what is computed.
    with torch.inference_mode(False), torch.enable_grad(), _disable_current_modes():
        for each in (level, reference):
            torch.ops.fedhq.use_level(each)
            results.append(_computed())
    return all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def _computed() -> list[Tensor]:
    """Outputs and gradients of small layers, the same at every call."""
    ops, generator = torch.ops.fedhq, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") ** 3

    results: list[Tensor] = []
    for rows, inner, out in ((1, 1, 1), (5, 7, 3), (37, 100, 33), (64, 64, 64), (129, 65, 50)):
        given, gradient = (random(rows, inner), random(out, inner), random(out)), random(rows, out)
        results += _trained(ops.int8_linear, given, gradient)
        for arguments in ((2, 8, torch.float32), (4, 8, torch.bfloat16), (8, 4, torch.int8)):
            results += _trained(ops.grid_linear, given, gradient, *arguments)
    for batch, channels, size, out, kernel, stride in ((2, 1, 9, 6, 5, 1), (3, 16, 8, 33, 3, 2), (2, 20, 7, 16, 3, 1)):
        x, weight, bias = random(batch, channels, size, size), random(out, channels, kernel, kernel), random(out)
        edge = (size + 2 - kernel) // stride + 1
        gradient = random(batch, out, edge, edge)
        for layout, values in ((torch.contiguous_format, x), (torch.channels_last, x.relu())):
            image, filters, upper = (each.contiguous(memory_format=layout) for each in (values, weight, gradient))
            given, geometry = (image, filters, bias), ([stride] * 2, [1] * 4, [1] * 2, layout is torch.channels_last)
            results += _trained(ops.int8_convolution, given, upper, *geometry)
            for arguments in ((2, 8, torch.float32), (4, 8, torch.bfloat16), (8, 4, torch.int8)):
                results += _trained(ops.grid_convolution, given, upper, *arguments, *geometry)
            results += _trained(ops.max_pool, (image,), random(batch, channels, size // 2, size // 2))
    for channels, groups in ((6, 3), (40, 8)):
        shape = (2, channels, 5, 9)
        normalized = random(*shape), random(channels), random(channels), random(*shape)
        for is_rectified in (False, True):
            results += _trained(ops.group_norm, normalized, random(*shape), groups, 1e-5, is_rectified)
    for bits in (2, 3, 4, 8):
        weight, base, decoded = random(33, 50), random(33, 50), torch.empty(33 * 50 - 40, device="cpu")
        packed, scale = ops.pack_weight(weight, base, bits)
        ops.unpack_weight(packed, bits, scale, 50, 40, decoded)
        units, places = (torch.zeros(33 * 50 - 40, dtype=each, device="cpu") for each in (torch.int64, torch.int32))
        found = ops.add_values(decoded, 50 * 2.0**40, 2**29, 2**30, 0x50000000, units, places)
        mean = torch.empty_like(decoded)
        ops.mean_of_units(units, 0x4338000000000000, 5, -90, 17.0, mean)
        results += [packed, scale, decoded, units, places[: found[1]], mean]
        results.append(torch.tensor([*found, *ops.magnitudes(decoded)], device="cpu"))
    return results


def _trained(layer: Any, given: Sequence[Tensor], gradient: Tensor, *arguments: Any) -> list[Tensor]:
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in given]
    output: Tensor = layer(*leaves, *arguments)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]
