"""The forward pass of a layer on the deployment grid, in integers: one for the QAT lane and the deployed model.

What a layer computes is exact between quantizing its input and rescaling its output, and every other operation rounds
alike in eager and in compiled kernels. So a prepared layer, the converted layer and the exported program agree to the
last bit.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedhq_lightning.quantize.activation_ranges import StaticGrid, static_integers
from fedhq_lightning.quantize.compilation import compiled
from fedhq_lightning.quantize.convolution import in_patch_order, is_channels_last, pad, patches
from fedhq_lightning.quantize.grid import activation_integers, integer_range, quantize_weight_rows
from fedhq_lightning.quantize.integer_convolution import ZERO, Geometry, exact_convolution
from fedhq_lightning.quantize.integer_matmul import integer_matmul
from fedhq_lightning.quantize.native.lanes import native_without_gradients, takes_images
from fedhq_lightning.quantize.scheme import LayerScheme


class Weight(NamedTuple):
    """A weight on its grid.

    Attributes:
        integers: int8 (out, in_flat).
        scale: fp32 (out, 1).
        sums: int32 (out, 1), of the integers.
    """

    integers: Tensor
    scale: Tensor
    sums: Tensor

    @classmethod
    def of(cls, weight: Tensor, scheme: LayerScheme) -> "Weight":
        """Quantize (out, ...) with one scale per output channel."""
        return cls(*quantize_weight_rows(weight.detach().flatten(1), scheme.weight_bits))


class Activation(NamedTuple):
    """Quantized input of a layer.

    Attributes:
        integers: int8 (rows, in) of a linear layer; uint8 (batch, height, width, channels) of a convolution, padded,
            where `ZERO` is added to every integer.
        scale: fp32, (rows, 1) or (batch, 1, 1, 1); of a static range all dimensions are 1.
        zero_point: fp32, as the scale; a value is (integer - zero point) times scale.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor


def linear(
    x: Tensor, weight: Weight, bias: Tensor | None, scheme: LayerScheme, static: StaticGrid | None = None
) -> tuple[Tensor, Activation]:
    """A linear layer.

    Args:
        x: (rows, in) floating point; rows may be 0.
        weight: Its weight.
        bias: (out,) or None.
        scheme: The grid.
        static: That of a static range; None: each row has a range of its own.

    Returns:
        (rows, out) in the dtype of `x`, and the quantized input.
    """
    assert scheme.activation_bits is not None
    if static is None:
        activation = Activation(*_row_quantizer(scheme.activation_bits)(x))
    else:
        ranges = static.for_dims(2)
        activation = Activation(_static_row_quantizer(scheme.activation_bits)(x, *ranges), *ranges)
    product = integer_matmul(activation.integers, weight.integers, scheme.weight_bits)
    scales = weight.scale.t(), weight.sums.t(), activation.scale, activation.zero_point
    return _rescale(product, *scales, bias, x.dtype), activation


def convolution(
    x: Tensor, weight: Weight, kernel: tuple[int, ...], bias: Tensor | None, scheme: LayerScheme,
    amounts: tuple[int, ...], geometry: Geometry, channels_last: bool, static: StaticGrid | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A convolution over two dimensions.

    Args:
        x: (batch, channels, height, width) floating point.
        weight: Its weight, flattened from (out, channels, *kernel).
        kernel: The kernel's height and width.
        bias: (out,) or None.
        scheme: The grid.
        amounts: Padding with zeros as `F.pad` takes it: left, right, top, bottom.
        geometry: Stride and dilation, one group.
        channels_last: Memory format of the output.
        static: The grid of a static range; None: each sample has a range of its own.

    Returns:
        (batch, out, height, width) in the dtype of `x`, and the input's scale and zero point, as in `Activation`.
    """
    assert scheme.activation_bits is not None
    filters = weight.integers.view(-1, x.shape[1], *kernel)
    kernels = native_without_gradients(x, weight.scale, bias)
    if kernels is not None and static is None and x.numel() and takes_images(x, filters, amounts):
        computed: tuple[Tensor, Tensor, Tensor] = kernels.deployed_convolution(
            *(x, weight.integers, filters.shape, weight.scale, bias, scheme.activation_bits),
            *(geometry.stride, amounts, geometry.dilation, channels_last),
        )
        return computed
    if torch.compiler.is_compiling():  # an exported program runs anywhere: no oneDNN operator
        x = F.pad(x, amounts)
        if static is None:
            integers, *ranges = activation_integers(x.float(), scheme.activation_bits, (1, 2, 3))
        else:
            scale, zero_point = static.for_dims(4)
            integers = static_integers(x.float(), scale, zero_point, scheme.activation_bits)
            ranges = [scale, zero_point]
        activation = Activation(integers.to(torch.int8), *ranges)
        windows = patches(activation.integers, kernel, geometry.stride, geometry.dilation)
        product = integer_matmul(windows.flatten(0, -2), in_patch_order(filters), scheme.weight_bits)
        product = product.view(*windows.shape[:-1], -1)
    else:
        given = None if static is None else static.for_dims(4)
        activation = Activation(*quantize_image(x, scheme.activation_bits, amounts, given))
        product = exact_convolution(activation.integers, filters, scheme.weight_bits, geometry)
    scales = weight.scale.flatten(), weight.sums.flatten(), activation.scale, activation.zero_point
    output = _rescale_image(product, *scales, bias, x.dtype, channels_last)
    return output, activation.scale, activation.zero_point


def in_two_dimensions(
    x: Tensor, stride: Sequence[int], dilation: Sequence[int], amounts: Sequence[int], padding_mode: str
) -> tuple[Tensor, tuple[int, ...], Geometry]:
    """Bring a convolution into the form that `convolution` takes.

    Args:
        x: (batch, channels, length) or (batch, channels, height, width).
        stride: As in the layer.
        dilation: As in the layer.
        amounts: The layer's padding, see `padding_amounts`.
        padding_mode: As in the layer; other values than zeros are padded here.

    Returns:
        Input (batch, channels, 1 or height, length or width), the padding that is left (left, right, top, bottom), and
        the geometry.
    """
    if padding_mode != "zeros":
        x, amounts = pad(x, amounts, padding_mode), [0] * len(amounts)
    if len(stride) == 1:
        x, stride, dilation, amounts = x.unsqueeze(2), (1, *stride), (1, *dilation), (*amounts, 0, 0)
    return x, tuple(amounts), Geometry((stride[0], stride[1]), (dilation[0], dilation[1]))


@cache
def _row_quantizer(bits: int) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    @compiled
    def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        integers, scale, zero_point = activation_integers(x.float(), bits, (1,))
        return integers.to(torch.int8), scale, zero_point

    return quantize_rows


@cache
def _static_row_quantizer(bits: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    @compiled
    def quantize_static_rows(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return static_integers(x.float(), scale, zero_point, bits).to(torch.int8)

    return quantize_static_rows


def quantize_image(
    x: Tensor, bits: int, amounts: tuple[int, ...], given: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution's input as what `Activation` holds.

    Args:
        x: (batch, channels, height, width) floating point.
        bits: Of the grid.
        amounts: As in `convolution`.
        given: Scale and zero point, (batch, 1, 1, 1) or all dimensions 1; None: those of each sample's own range.
    """
    channels_last = is_channels_last(x)
    in_order = x.permute(0, 2, 3, 1) if channels_last else x
    if given is None:
        image, scale, zero_point = _image_quantizer(bits, channels_last)(in_order)
    else:
        scale, zero_point = given
        image = _static_image_quantizer(bits, channels_last)(in_order, scale, zero_point)
    if any(amounts):
        left, right, top, bottom = amounts
        batch, height, width, channels = image.shape
        zero = (zero_point + ZERO).to(torch.uint8).expand(batch, 1, 1, 1)
        padded = zero.repeat(1, height + top + bottom, width + left + right, channels)
        padded[:, top : top + height, left : left + width] = image
        image = padded
    return image, scale, zero_point


@cache
def _image_quantizer(bits: int, channels_last: bool) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    @compiled
    def quantize_image(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        integers, scale, zero_point = activation_integers(x.float(), bits, (1, 2, 3))
        image = (integers + ZERO).to(torch.uint8)
        return image if channels_last else image.permute(0, 2, 3, 1).contiguous(), scale, zero_point

    return quantize_image


@cache
def _static_image_quantizer(bits: int, channels_last: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    @compiled
    def quantize_static_image(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        image = (static_integers(x.float(), scale, zero_point, bits) + ZERO).to(torch.uint8)
        return image if channels_last else image.permute(0, 2, 3, 1).contiguous()

    return quantize_static_image


def _rescaled(product: Tensor, weight_scale: Tensor, sums: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    exact = product.to(torch.int32) - zero_point.to(torch.int32) * sums
    # One scale after the other: their own product could underflow where the result does not.
    return exact.float() * weight_scale * scale


@compiled
def _rescale(
    product: Tensor, weight_scale: Tensor, sums: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """int32 (rows, out) to `dtype`; column scales and sums (1, out), row scales and zero points (rows, 1)."""
    output = _rescaled(product, weight_scale, sums, scale, zero_point)
    return (output if bias is None else output + bias.float()).to(dtype)


@compiled
def _rescale_image(
    product: Tensor, weight_scale: Tensor, sums: Tensor, scale: Tensor, zero_point: Tensor, bias: Tensor | None,
    dtype: torch.dtype, channels_last: bool,
) -> Tensor:  # fmt: skip
    """Integers (batch, height, width, out) to (batch, out, height, width)."""
    output = _rescaled(product, weight_scale, sums, scale, zero_point)
    output = (output if bias is None else output + bias.float()).to(dtype).permute(0, 3, 1, 2)
    return output.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@compiled
def dequantize_rows(integers: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 (rows, columns) to values; scales and zero points (rows, 1)."""
    return ((integers.float() - zero_point) * scale).to(dtype)


def image_on_grid(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """An input (batch, channels, height, width) on the grid that the forward pass found, channels last in memory.

    Args:
        x: Floating point.
        scale: (batch, 1, 1, 1), or of a static range (1, 1, 1, 1).
        zero_point: fp32, as the scale.
        bits: Of the grid.
        dtype: Of the result.
    """
    image: Tensor = _image_rounder(bits)(x.permute(0, 2, 3, 1), scale, zero_point, dtype)
    return image.permute(0, 3, 1, 2)


@cache
def _image_rounder(bits: int) -> Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]:
    lowest, highest = integer_range(bits)

    @compiled
    def round_image(x: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
        integers = ((x.float() * (1.0 / scale)).round() + zero_point).clamp(lowest, highest)
        return ((integers - zero_point) * scale).to(dtype).contiguous()

    return round_image
