"""Products of int8 matrices, exact in int32."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_INNER_SIZE = 65536
"""Longest inner dimension for which no product, zero-point correction included, leaves int32: 65536 * 255 * 128."""

_OVERFLOWING_BITS = 8  # of the second factor, on CPUs without VNNI: see `has_exact_kernel`
_CUDA_MIN_ROWS = 32  # torch 2.13 refuses 16 and less; pytorch/pytorch#107671 had wrong products of 17
_CUDA_MULTIPLE = 16  # cuBLASLt's int8 kernels want rows that begin at multiples of 16 bytes


def integer_matmul(a: Tensor, b: Tensor, b_bits: int = 8) -> Tensor:
    """`a @ b.T` in integers.

    Args:
        a: int8 (rows, inner), any strides, rows may be 0.
        b: int8 (columns, inner), any strides.
        b_bits: Bits that the values of `b` take.

    Returns:
        int32 (rows, columns); int64 where `inner` exceeds `MAX_INNER_SIZE`. Exact.
    """
    inner = a.shape[1]
    if inner > MAX_INNER_SIZE:
        starts = range(0, inner, MAX_INNER_SIZE)
        parts = [a[:, i : i + MAX_INNER_SIZE] for i in starts], [b[:, i : i + MAX_INNER_SIZE] for i in starts]
        return torch.stack([integer_matmul(*pair, b_bits).long() for pair in zip(*parts, strict=True)]).sum(0)
    a, b = _as_matrix(a), _as_matrix(b)
    if a.is_cuda:
        return _cuda_matmul(a, b)
    # An exported program may run on any CPU, and cannot try what this one can.
    is_safe = b_bits < _OVERFLOWING_BITS or (not torch.compiler.is_exporting() and has_exact_kernel(a.device))
    return _cpu_matmul(a, b) if is_safe else 2 * _cpu_matmul(a, b >> 1) + _cpu_matmul(a, b & 1)


def _cuda_matmul(a: Tensor, b: Tensor) -> Tensor:
    rows, columns, inner = a.shape[0], b.shape[0], a.shape[1]
    inner_pad, column_pad = -inner % _CUDA_MULTIPLE, -columns % _CUDA_MULTIPLE
    # An exported program has any number of rows, so it must not branch on them.
    row_pad = _CUDA_MIN_ROWS if torch.compiler.is_exporting() or rows < _CUDA_MIN_ROWS else 0
    return torch._int_mm(_for_cuda(a, inner_pad, row_pad), _for_cuda(b, inner_pad, column_pad).t())[:rows, :columns]


def _for_cuda(x: Tensor, inner_pad: int, row_pad: int) -> Tensor:
    """Rows without gaps, at an address that int8 kernels take; for other layouts cuBLASLt has none, or slow ones."""
    if inner_pad or row_pad:
        return F.pad(x, (0, inner_pad, 0, row_pad))
    is_aligned = torch.compiler.is_exporting() or x.storage_offset() % _CUDA_MULTIPLE == 0
    return x.contiguous() if is_aligned else x.clone(memory_format=torch.contiguous_format)


def has_exact_kernel(device: torch.device) -> bool:
    """Whether `torch._int_mm` is exact on this device; taken for granted while a program is traced.

    On x86 CPUs without VNNI instructions oneDNN adds pairs of products in 16 bits, which overflow without a word where
    the second factor takes all of 8 bits. Halved, it takes 7, and no pair overflows.
    """
    return torch.compiler.is_compiling() or device.type != "cpu" or _is_exact_on_cpu()


@cache
def _is_exact_on_cpu() -> bool:
    # The worst case: oneDNN adds 128 to the first factor.
    highest, lowest = torch.full((32, 64), 127, dtype=torch.int8), torch.full((32, 64), -128, dtype=torch.int8)
    return bool((torch._int_mm(highest, lowest.t()) == 64 * 127 * -128).all())


def _cpu_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`torch._int_mm`, kept from two shapes that torch 2.13 gets wrong on CPUs (tests/quantize/test_integer_matmul.py).

    One inner element gives wrong products now and then; one row gives them whenever that row's strides are those of a
    transposed column, which count as contiguous too.
    """
    if a.shape[1] == 1:
        return a.int() * b.t().int()
    # An exported program has any number of rows, so it must not branch on them.
    if torch.compiler.is_exporting() or a.shape[0] == 1:
        a = a.clone(memory_format=torch.contiguous_format)
    return torch._int_mm(a, b.t())


def _as_matrix(x: Tensor) -> Tensor:
    """Copy `x` where its layout is one that matrix kernels misread, such as overlapping windows."""
    # Exporting, strides may be symbols, and a branch on them would narrow the program.
    if torch.compiler.is_exporting():
        return x.contiguous()
    by_rows = x.stride(1) == 1 and x.stride(0) >= x.shape[1]
    by_columns = x.stride(0) == 1 and x.stride(1) >= x.shape[0]
    return x if by_rows or by_columns else x.contiguous()
