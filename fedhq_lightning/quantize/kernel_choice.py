"""Where int8 products make a layer faster: a static rule, so that no measurement changes a run's bits.

Kernels of our own (`native`) pay in every layer, but for large weights that few rows meet on a processor that cannot
multiply bytes. Elsewhere a layer must be large: what is around the products costs more there.
"""

from collections.abc import Sequence
from functools import cache
from math import inf, prod

import torch
from torch import Tensor

from fedhq_lightning.quantize.compilation import can_compile
from fedhq_lightning.quantize.integer_matmul import has_exact_kernel
from fedhq_lightning.quantize.native.lanes import multiplies_bytes, native

_LEAST_ROWS = 32
_LEAST_LINEAR_SIZE = 64  # of either side of the weight
_LEAST_LINEAR_PRODUCTS = 2**23  # multiplications of a forward pass; docs/RESULTS.md has what was measured
_LEAST_CHANNELS = 32
_LEAST_CONVOLUTION_PRODUCTS = 2**26
_LEAST_CAPABILITY = (7, 5)  # the first tensor cores that multiply int8
_LEAST_NATIVE_ROWS = 64
_SMALL_WEIGHT = 2**18  # values, which stay in a cache while they are rounded


def least_linear_rows(weight_shape: Sequence[int]) -> float:
    """Rows of an input from which int8 products pay in a linear layer, on a device that is fast at them.

    Args:
        weight_shape: (out, in).

    Returns:
        Rows of one call; infinity where they never pay.
    """
    if min(weight_shape) < _LEAST_LINEAR_SIZE:
        return inf
    return max(_LEAST_ROWS, _LEAST_LINEAR_PRODUCTS / prod(weight_shape))


def least_convolution_rows(weight_shape: Sequence[int]) -> float:
    """Output positions from which int8 products pay in a convolution, on a device that is fast at them.

    Args:
        weight_shape: (out, channels, *kernel).

    Returns:
        Positions of all samples of one call together; infinity where they never pay.
    """
    if min(weight_shape[:2]) < _LEAST_CHANNELS:
        return inf
    return _LEAST_CONVOLUTION_PRODUCTS / prod(weight_shape)


def integers_pay_in_linear(x: Tensor, weight: Tensor, own: bool = True) -> bool:
    """Whether int8 is the faster kernel, from device type and shapes alone.

    Args:
        x: (..., in).
        weight: (out, in).
        own: Whether the layer is one that kernels of our own take, where there are any.
    """
    rows = x.numel() // max(weight.shape[1], 1)
    if own and native(x, weight) is not None:
        return bool(rows) and (multiplies_bytes() or rows >= _LEAST_NATIVE_ROWS or weight.numel() <= _SMALL_WEIGHT)
    return rows >= least_linear_rows(weight.shape) and has_fast_integers(x.device)


def integers_pay_in_convolution(x: Tensor, weight: Tensor, positions: int, own: bool = True) -> bool:
    """Whether int8 is the faster kernel, from device type and shapes alone.

    Args:
        x: (batch, channels, ...).
        weight: (out, channels, *kernel).
        positions: Output positions of one sample.
        own: As above.
    """
    if own and native(x, weight) is not None:
        return x.numel() > 0
    return x.shape[0] * positions >= least_convolution_rows(weight.shape) and has_fast_integers(x.device)


@cache
def has_fast_integers(device: torch.device) -> bool:
    """Whether int8 products are known to be much faster than fp32: on NVIDIA's GPUs from Turing on, VNNI and AMX."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
    if device.type != "cpu" or not can_compile():
        return False
    capabilities = torch.cpu.get_capabilities()
    instructions = ("avx512_vnni", "avx_vnni", "amx_int8")
    return any(capabilities.get(name, False) for name in instructions) and has_exact_kernel(device)
