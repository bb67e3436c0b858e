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

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from fedhq_lightning.quantize.compilation import compiled
from fedhq_lightning.quantize.native.lanes import with_native
from fedhq_lightning.quantize.scheme import LayerScheme

SMALLEST_SCALE = torch.finfo(torch.float32).smallest_normal  # an all-zero channel divides by this instead of by zero
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
    integers, scale, _ = quantize_weight_rows(_groups(weight.detach(), layer_scheme), layer_scheme.weight_bits)
    # Not a number shows in the scale; cast to int8 it may be any integer.
    integers = integers.clamp(*integer_range(layer_scheme.weight_bits))
    return _by_channel(weight, integers, scale)


def _groups(weight: Tensor, layer_scheme: LayerScheme) -> Tensor:
    """A weight's values, a row for each scale: (out * groups, size)."""
    size = weight.shape[1:].numel()
    group_size = layer_scheme.group_size or size
    if size % group_size:
        raise ValueError(f"scheme '{layer_scheme}': a group of {group_size} does not divide {size} inputs")
    return weight.reshape(-1, group_size)


def _by_channel(weight: Tensor, integers: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of integers and their scales as (out, in_flat) and (out, groups)."""
    out, size = weight.shape[0], weight.shape[1:].numel()
    return integers.view(out, size), scale.view(out, scale.numel() // max(out, 1))


def quantize_weight_randomly(
    weight: Tensor, layer_scheme: LayerScheme, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Round every value up or down at random, so that its expectation is the value: what many such add up to is right.

    The scale is the smallest at which no weight leaves the range, at any bits: clipping would be a bias.

    Args:
        weight: (out, ...) float32 on the CPU.
        layer_scheme: As in `quantize_weight`.
        generator: Of the random numbers, one a value.

    Returns:
        As `quantize_weight`.

    Source: Gupta et al. 2015, section 3.1.
    """
    rows = _groups(weight, layer_scheme)
    lowest, highest = integer_range(layer_scheme.weight_bits)
    scale = _widest(rows, lowest, highest).clamp(min=SMALLEST_SCALE)
    steps = rows * (1.0 / scale) + torch.rand(rows.shape, generator=generator)
    return _by_channel(weight, steps.floor().clamp(lowest, highest).to(torch.int8), scale)


def quantize_weight_rows(rows: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round rows of weights, each to its own scale.

    Args:
        rows: (rows, size) floating point without gradient.
        bits: 2..8.

    Returns:
        Integers, int8 (rows, size); scales, fp32 (rows, 1); sums of the integers, int32 (rows, 1).
    """
    rounded: tuple[Tensor, Tensor, Tensor] = _row_quantizer(bits)(rows)
    return rounded


@cache
def _row_quantizer(bits: int) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    @compiled
    def quantize(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        integers, scale = weight_integers(rows.float(), bits)
        return integers.to(torch.int8), scale, integers.to(torch.int32).sum(dim=1, keepdim=True, dtype=torch.int32)

    return with_native("quantize_weight", bits, quantize)


def is_searched(bits: int) -> bool:
    """Whether the scale of weights of so many bits is the best of several, which takes passes over the weight."""
    return bits <= _MOST_SEARCHED_BITS


def weight_integers(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """What `quantize_weight_rows` does to fp32, for kernels to fuse: integers still as fp32, and scales."""
    lowest, highest = integer_range(bits)
    shares = _SEARCHED_SHARES if is_searched(bits) else ()
    widest = _widest(rows, lowest, highest)
    unit = scale = widest.clamp(min=SMALLEST_SCALE)
    error = _squared_error(rows, scale, unit, lowest, highest) if shares else unit
    for share in shares:
        candidate = (widest * share).clamp(min=SMALLEST_SCALE)
        candidate_error = _squared_error(rows, candidate, unit, lowest, highest)
        better = candidate_error < error
        error, scale = torch.where(better, candidate_error, error), torch.where(better, candidate, scale)
    # The reciprocal first, as torchao does: dividing would round differently.
    return (rows * (1.0 / scale)).round().clamp(lowest, highest), scale


def _widest(rows: Tensor, lowest: int, highest: int) -> Tensor:
    """The smallest scale of each row at which nothing leaves the range; (rows, 1)."""
    below = rows.amin(dim=1, keepdim=True).clamp(max=0) / float(lowest)
    above = rows.amax(dim=1, keepdim=True).clamp(min=0) / float(highest)
    return torch.where(below > above, below, above)


def _squared_error(rows: Tensor, scale: Tensor, unit: Tensor, lowest: int, highest: int) -> Tensor:
    """Of rounding to `scale`, in squares of `unit`; (rows, 1)."""
    steps = rows * (1.0 / scale)
    # Sixteenths of a step are integers, and sums of their squares exact in any order while they stay below 2^24. So
    # eager and compiled kernels choose alike; a sum beyond that belongs to a scale that no row of 40,000 would choose.
    sixteenths = ((steps.round().clamp(lowest, highest) - steps) * 16.0).round()
    return sixteenths.square().sum(dim=1, keepdim=True) * (scale / unit).square()


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
    integers, scale, zero_point = activation_integers(x.float(), bits, dims)
    return integers.to(torch.int8), scale, zero_point.to(torch.int32)


def activation_integers(x: Tensor, bits: int, dims: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What `quantize_activation` does to fp32, for kernels to fuse: integers and zero points still as fp32."""
    lowest, highest = integer_range(bits)
    smallest = x.amin(dim=tuple(dims), keepdim=True).clamp(max=0)
    largest = x.amax(dim=tuple(dims), keepdim=True).clamp(min=0)
    scale = ((largest - smallest) / float(highest - lowest)).clamp(min=SMALLEST_SCALE)
    zero_point = (lowest - (smallest / scale).round()).clamp(lowest, highest)
    return ((x * (1.0 / scale)).round() + zero_point).clamp(lowest, highest), scale, zero_point
