"""Convolutions of bytes with int8 weights: oneDNN's kernels on CPUs that have them, else a product over patches."""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedhq_lightning.quantize.convolution import in_patch_order, patches
from fedhq_lightning.quantize.integer_matmul import integer_matmul

ZERO = 128
"""What an integer 0 is as a byte: oneDNN takes unsigned activations."""
_OVERFLOWING_BITS = 8
_LARGEST_EXACT = 2**24  # fp32 holds every integer up to here


class Geometry(NamedTuple):
    """How a two-dimensional convolution without padding moves over its input."""

    stride: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def scaled_convolution(
    x: Tensor,
    zero: int | Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int],
    geometry: Geometry,
) -> Tensor:
    """Convolve, and give every output channel its scale and bias.

    Args:
        x: uint8 (batch, height, width, channels), contiguous.
        zero: The byte that stands for 0; a tensor only without padding.
        weight: int8 (out, channels / groups, kernel height, kernel width).
        scale: fp32 (out,).
        bias: fp32 (out,) or None.
        padding: Rows and columns of zeros on either side.
        geometry: Stride, dilation and groups.

    Returns:
        fp32 (batch, out, height, width) in channels-last memory format.
    """
    if has_convolution_kernel(x.device):
        return _onednn(x, int(zero), weight, scale, bias, padding, geometry)
    if any(padding):
        x = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]), value=int(zero))
    product = _over_patches(signed(x), weight, geometry)
    # Bytes are signed integers plus 128, of which only `zero` belongs to the value.
    shift = (ZERO - zero) * weight.flatten(1).sum(1, dtype=torch.int32)
    output = (product + shift).float() * scale
    output = output if bias is None else output + bias
    return output.movedim(-1, 1)


def exact_convolution(x: Tensor, weight: Tensor, weight_bits: int, geometry: Geometry) -> Tensor:
    """Convolve in integers.

    Args:
        x: uint8 (batch, height, width, channels): integers plus `ZERO`; padded already.
        weight: int8 (out, channels / groups, kernel height, kernel width) of `weight_bits` bits.
        weight_bits: 2..8.
        geometry: Stride, dilation and groups.

    Returns:
        Integers as int32 or fp32, exact, (batch, height, width, out).
    """
    largest = ZERO * 2 ** (weight_bits - 1) * weight[0].numel()
    if has_convolution_kernel(x.device, weight_bits) and largest <= _LARGEST_EXACT:
        ones = torch.ones(weight.shape[0])
        return _onednn(x, ZERO, weight, ones, None, (0, 0), geometry).movedim(1, -1)
    return _over_patches(signed(x), weight, geometry, weight_bits)


def signed(x: Tensor) -> Tensor:
    """Bytes as the integers that they stand for, int8: 128 less."""
    return (x ^ ZERO).view(torch.int8)


def has_convolution_kernel(device: torch.device, weight_bits: int = 8) -> bool:
    """Whether oneDNN convolves bytes with weights of so many bits on this device, without overflow in between.

    On x86 CPUs without VNNI instructions it adds pairs of products in 16 bits, which overflow without a word where
    weights take all of 8 bits; its matrix products may be exact on the same CPU.
    """
    if device.type != "cpu" or not hasattr(torch.ops.onednn, "qconv_pointwise"):
        return False
    return weight_bits < _OVERFLOWING_BITS or _is_exact_on_cpu()


@cache
def _is_exact_on_cpu() -> bool:
    geometry = Geometry((1, 1))
    highest = torch.full((2, 3, 9, 64), 255, dtype=torch.uint8)
    for value in (-128, 127):
        weight = torch.full((32, 64, 1, 3), value, dtype=torch.int8)
        sums = _onednn(highest, 0, weight, torch.ones(32), None, (0, 0), geometry)
        if not (sums == 255 * value * 64 * 3).all():
            return False
    return True


def _onednn(
    x: Tensor,
    zero: int,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int],
    geometry: Geometry,
) -> Tensor:
    stride, dilation, groups = list(geometry.stride), list(geometry.dilation), geometry.groups
    # Neither the scales nor the zero point change what is packed; one scale and none are packed fastest.
    packed = torch.ops.onednn.qconv_prepack(
        weight.contiguous(), torch.ones(1), 1.0, 0, stride, list(padding), dilation, groups, None
    )
    zero_points = torch.zeros(weight.shape[0], dtype=torch.int32)
    image = x.permute(0, 3, 1, 2)
    output: Tensor = torch.ops.onednn.qconv_pointwise(
        *(image, 1.0, zero, packed, scale, zero_points, bias, stride, list(padding), dilation, groups),
        *(1.0, 0, torch.float32, "none", [], ""),
    )
    return output


def _over_patches(x: Tensor, weight: Tensor, geometry: Geometry, weight_bits: int = 8) -> Tensor:
    """int32 (batch, height, width, out) of int8 (batch, height, width, channels)."""
    windows = patches(x.movedim(-1, 1), weight.shape[2:], geometry.stride, geometry.dilation)
    weights = in_patch_order(weight)
    if geometry.groups == 1:
        return integer_matmul(windows.flatten(0, -2), weights, weight_bits).view(*windows.shape[:-1], -1)
    shape = *windows.shape[:-1], -1, geometry.groups, weight.shape[1]
    by_group = windows.view(shape).movedim(-2, 0).flatten(-2)
    products = [
        integer_matmul(part.flatten(0, -2), rows, weight_bits).view(*windows.shape[:-1], -1)
        for part, rows in zip(by_group, weights.chunk(geometry.groups), strict=True)
    ]
    return torch.cat(products, dim=-1)
