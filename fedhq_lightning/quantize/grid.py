"""The deployment grid in plain torch operations, so that exported programs need nothing else.

Given the scales, the numerics are torchao's, operation by operation; the tests hold the two bitwise equal.

Weights are symmetric with one scale per output channel, or per group of the flattened input: the smallest scale at
which no weight leaves the range (torchao's SYMMETRIC_NO_CLIPPING_ERR) or, up to 4 bits, a share of it if that makes the
squared error smaller. Rounding twice is then rounding once, but for a scale's last bits: a weight on a grid has no
error on it. torchao's default scale, the largest magnitude over half the range, has not that property: it rounds -7.5
steps to -8, so extremes grow by 1/15 at 4 bits and by 1/3 at 2 bits each time a model is rounded, trained on and
rounded again.

Activations are asymmetric, with a range that includes zero, taken anew for every row of a linear layer and every sample
of a convolution.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedhq_lightning.quantize.scheme import LayerScheme

_SMALLEST_SCALE = torch.finfo(torch.float32).smallest_normal  # an all-zero channel divides by this instead of by zero
_MOST_SEARCHED_BITS = 4
_SEARCHED_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def integer_range(bits: int) -> tuple[int, int]:
    """Smallest and largest signed integer of `bits` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantize_weight(weight: Tensor, layer_scheme: LayerScheme) -> tuple[Tensor, Tensor]:
    """Round a weight to its grid.

    Args:
        weight: (out, ...) floating point, any device. Computed in fp32.
        layer_scheme: The grid; a group size must divide the flattened input.

    Returns:
        Integers, int8 (out, in_flat), and scales, fp32 (out, groups); groups is 1 without a group size. A weight is
        about integer times scale. Not a number stays so, through its scale.

    Raises:
        ValueError: The group size does not divide the flattened input.

    Source: torchao 0.18, `choose_qparams_affine` (no clipping error) and `_quantize_affine_no_dtype_cast`; the search
    over clipped ranges as in Banner et al. 2019, with the error measured instead of modelled.
    """
    flat = weight.detach().float().reshape(weight.shape[0], -1)
    size = flat.shape[1]
    group_size = layer_scheme.group_size or size
    if size % group_size:
        raise ValueError(f"scheme '{layer_scheme}': a group of {group_size} does not divide {size} inputs")
    lowest, highest = integer_range(layer_scheme.weight_bits)
    grouped = flat.view(weight.shape[0], size // group_size, group_size)
    below = grouped.amin(dim=2, keepdim=True).clamp(max=0) / float(lowest)
    above = grouped.amax(dim=2, keepdim=True).clamp(min=0) / float(highest)
    widest = torch.where(below > above, below, above)
    scale, integers = _rounded(grouped, widest, lowest, highest)
    if layer_scheme.weight_bits <= _MOST_SEARCHED_BITS:
        error = _squared_error(grouped, scale, integers)
        for share in _SEARCHED_SHARES:
            candidate = _rounded(grouped, widest * share, lowest, highest)
            candidate_error = _squared_error(grouped, *candidate)
            better = candidate_error < error
            error = torch.where(better, candidate_error, error)
            scale, integers = torch.where(better, candidate[0], scale), torch.where(better, candidate[1], integers)
    return integers.to(torch.int8).reshape(flat.shape), scale.squeeze(2)


def _rounded(grouped: Tensor, scale: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    scale = scale.clamp(min=_SMALLEST_SCALE)
    # The reciprocal first, as torchao does: dividing would round differently.
    return scale, (grouped * (1.0 / scale)).round().clamp(lowest, highest)


def _squared_error(grouped: Tensor, scale: Tensor, integers: Tensor) -> Tensor:
    """In units of the scale, so that tiny and huge weights neither vanish nor overflow; (out, groups, 1)."""
    widest = grouped.abs().amax(dim=2, keepdim=True).clamp(min=_SMALLEST_SCALE)
    return ((integers * scale - grouped) / widest).square().sum(dim=2, keepdim=True)


def dequantize_weight(q: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    """Integers times scales.

    Args:
        q: int8 (out, in_flat).
        scale: fp32 (out, groups).
        shape: The weight's own shape, (out, ...).

    Returns:
        fp32 of `shape`.
    """
    grouped = q.view(scale.shape[0], scale.shape[1], -1).float() * scale.unsqueeze(2)
    return grouped.reshape(tuple(shape))


def round_to_grid(weight: Tensor, layer_scheme: LayerScheme) -> Tensor:
    """The grid point nearest to every weight: quantize, then dequantize.

    Args:
        weight: (out, ...) floating point.
        layer_scheme: The grid.

    Returns:
        fp32, shape as the weight.
    """
    return dequantize_weight(*quantize_weight(weight, layer_scheme), weight.shape)


def quantize_activation(x: Tensor, bits: int, dims: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to a range taken from the values themselves.

    Args:
        x: Floating point, any shape; `dims` must not be empty dimensions. Computed in fp32.
        bits: 2..8.
        dims: Dimensions that share one range.

    Returns:
        Integers, int8 as `x`; scales, fp32, and zero points, int32, both with `dims` kept as size 1. A value is about
        (integer - zero point) times scale.

    Source: torchao 0.18, `choose_qparams_affine` (asymmetric) and `_quantize_affine_no_dtype_cast`.
    """
    x = x.float()
    lowest, highest = integer_range(bits)
    smallest = x.amin(dim=tuple(dims), keepdim=True).clamp(max=0)
    largest = x.amax(dim=tuple(dims), keepdim=True).clamp(min=0)
    scale = ((largest - smallest) / float(highest - lowest)).clamp(min=_SMALLEST_SCALE)
    zero_point = (lowest - (smallest / scale).round()).clamp(lowest, highest)
    integers = ((x * (1.0 / scale)).round() + zero_point).clamp(lowest, highest).to(torch.int8)
    return integers, scale, zero_point.to(torch.int32)
