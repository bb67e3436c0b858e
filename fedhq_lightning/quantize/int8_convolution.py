"""Convolutions of the PTQ lane: output, input gradient and weight gradient in int8.

Input and gradient are quantized once each, with one scale per channel. Such a scale runs along the inner dimension of
the output's and the input gradient's product, so the weight takes it up before it is quantized itself; in the weight
gradient's product it belongs to a row or a column. Inputs without negative values, as after a ReLU, get all 255 steps.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedhq_lightning.quantize.compilation import compiled
from fedhq_lightning.quantize.convolution import is_channels_last, output_positions, pad, padding_amounts
from fedhq_lightning.quantize.int8_training import (
    HIGHEST,
    SMALLEST_SCALE,
    noise_seed,
    output_dtype,
    rescale_rows,
    round_to_scale,
    symmetric_scale,
)
from fedhq_lightning.quantize.integer_convolution import ZERO, Geometry, scaled_convolution
from fedhq_lightning.quantize.integer_matmul import MAX_INNER_SIZE, integer_matmul
from fedhq_lightning.quantize.kernel_choice import integers_pay_in_convolution
from fedhq_lightning.quantize.lane_options import PtqKernel
from fedhq_lightning.quantize.native.lanes import native, takes_images
from fedhq_lightning.quantize.scheme import flattened_input_size

_BYTES_AT_ONCE = 2**22  # of patches, so that they stay in the cache between being copied and being multiplied
_BYTES_AT_ONCE_ON_GPUS = 2**28  # where few calls are fast


class _Setting(NamedTuple):
    padding: tuple[int, int]
    geometry: Geometry
    dtype: torch.dtype
    stochastic: bool


class _Gradient(NamedTuple):
    """A gradient (batch, out, height, width) in the forms that its products take.

    Attributes:
        image: Bytes (batch, height, width, out) with `ZERO` for zero.
        integers: The same as int8.
        scale: fp32 (1, out, 1, 1).
        integer_sums: int32 (out,).
    """

    image: Tensor
    integers: Tensor
    scale: Tensor
    integer_sums: Tensor


@compiled
def _quantize_input(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, channels, height, width) to bytes, channels last, scales (1, channels, 1, 1), and the byte for zero."""
    x = x.float()
    is_signed = x.amin() < 0
    zero = torch.where(is_signed, ZERO, 0)
    highest = torch.where(is_signed, HIGHEST, 255)
    scale = (x.abs().amax(dim=(0, 2, 3), keepdim=True) / highest).clamp(min=SMALLEST_SCALE)
    return (round_to_scale(x, scale) + zero).to(torch.uint8).permute(0, 2, 3, 1).contiguous(), scale, zero


@compiled
def _quantize_input_again(x: Tensor, scale: Tensor, zero: int | Tensor) -> Tensor:
    """The bytes that `_quantize_input` found, less 128: int8 (batch, height, width, channels)."""
    integers = round_to_scale(x.float(), scale) + (zero - ZERO)
    return integers.to(torch.int8).permute(0, 2, 3, 1).contiguous()


@compiled
def _quantize_gradient(gradient: Tensor, seed: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `_Gradient` holds; rounded stochastically where there is a seed."""
    gradient = gradient.float()
    scale = symmetric_scale(gradient, (0, 2, 3))
    rounded = round_to_scale(gradient, scale, seed).permute(0, 2, 3, 1).contiguous()
    sums = rounded.to(torch.int32).sum((0, 1, 2), dtype=torch.int32)
    return (rounded + ZERO).to(torch.uint8), rounded.to(torch.int8), scale, sums


@compiled
def _quantize_weight(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in, *kernel), times scales (1, in, 1, 1), to int8 and scales (out, 1, 1, 1)."""
    folded = weight.float() * scale
    weight_scale = symmetric_scale(folded, (1, 2, 3))
    return round_to_scale(folded, weight_scale).to(torch.int8).contiguous(), weight_scale


class _Int8Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, setting: _Setting) -> Tensor:
        integers, scale, zero = _quantize_input(x)
        filters, filter_scale = _quantize_weight(weight, scale)
        # The input itself, which the layer before often keeps as well: bytes would take memory on top of it.
        ctx.save_for_backward(x, scale, weight)
        # A number would have a GPU wait for it.
        ctx.zero = zero if x.is_cuda else int(zero)
        ctx.setting, ctx.bias_dtype = setting, None if bias is None else bias.dtype
        output = scaled_convolution(
            *(integers, ctx.zero, filters, filter_scale.flatten(), None if bias is None else bias.float()),
            *(setting.padding, setting.geometry),
        )
        return like_convolution(output, x, weight).to(setting.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, x_scale, weight = ctx.saved_tensors
        setting: _Setting = ctx.setting
        quantized = _Gradient(*_quantize_gradient(gradient, noise_seed(setting.stochastic)))
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            mirrored, scale = _quantize_weight(mirror(weight), quantized.scale)
            grad_x = input_gradient(
                quantized.image, mirrored, scale.flatten(), x.shape[2:], setting.padding, setting.geometry
            )
            grad_x = grad_x.to(x.dtype)
            grad_x = grad_x if is_channels_last(x) else grad_x.contiguous()
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(quantized, x, x_scale, ctx.zero, weight, setting)
        # Summed by torch alone: compiled kernels and ours would each add in an order of their own.
        sums = gradient.sum((0, 2, 3), dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, None if sums is None else sums.to(ctx.bias_dtype), None


def mirror(weight: Tensor) -> Tensor:
    """(out, in, height, width) as the input's gradient is convolved with it: (in, out, height, width)."""
    return weight.transpose(0, 1).flip(2, 3)


def input_gradient(
    gradient: Tensor,
    mirrored: Tensor,
    scale: Tensor,
    size: Sequence[int],
    padding: tuple[int, int],
    geometry: Geometry,
) -> Tensor:
    """The gradient, strides filled with zeros, convolved with the mirrored weight.

    Args:
        gradient: Bytes (batch, height, width, out) with `ZERO` for zero.
        mirrored: int8, see `mirror`.
        scale: fp32 (in,).
        size: Height and width of the input.
        padding: Rows of zeros above the input, and columns on its left.
        geometry: Of the forward pass.

    Returns:
        fp32 (batch, in, height, width), channels last in memory.
    """
    (down, right), dilation, _ = geometry
    spread = gradient
    if down > 1 or right > 1:
        batch, height, width, channels = spread.shape
        spread = spread.new_full((batch, (height - 1) * down + 1, (width - 1) * right + 1, channels), ZERO)
        spread[:, ::down, ::right] = gradient
    before = [dilation[i] * (mirrored.shape[2 + i] - 1) - padding[i] for i in range(2)]
    after = [size[i] + dilation[i] * (mirrored.shape[2 + i] - 1) - before[i] - spread.shape[1 + i] for i in range(2)]
    around = (before[0], before[1])
    if before != after or min(before) < 0:
        spread = F.pad(spread, (0, 0, before[1], after[1], before[0], after[0]), value=ZERO)
        around = (0, 0)
    return scaled_convolution(spread, ZERO, mirrored, scale, None, around, Geometry((1, 1), dilation))


def _weight_gradient(
    gradient: _Gradient, x: Tensor, x_scale: Tensor, zero: int | Tensor, weight: Tensor, setting: _Setting
) -> Tensor:
    """(out, in, *kernel)."""
    rows, columns = setting.padding
    padded = _quantize_input_again(x, x_scale, zero)
    if rows or columns:
        padded = F.pad(padded, (0, 0, columns, columns, rows, rows), value=int(zero) - ZERO)
    total = patch_products(gradient.integers, padded, weight.shape[2:], setting.geometry)
    if isinstance(zero, Tensor) or zero != ZERO:
        # As int8, the input lacks the 128 that its bytes have.
        total = total + (ZERO - zero) * gradient.integer_sums.unsqueeze(1)
    by_channel = rescale_rows(total, gradient.scale.view(-1, 1), torch.float32).view(len(weight), -1, x.shape[1])
    result = (by_channel * x_scale.view(1, 1, -1)).movedim(2, 1).reshape(weight.shape)
    return result.to(weight.dtype)


def patch_products(gradient: Tensor, padded: Tensor, kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """The weight's gradient in integers: products of the gradient and the input's patches, a few samples at a time.

    Args:
        gradient: int8 (batch, height, width, out).
        padded: int8 (batch, height, width, channels) of the padded input, contiguous.
        kernel: Height and width.
        geometry: Of the forward pass.

    Returns:
        (out, kernel elements * channels), int32, or int64 where that could overflow.
    """
    batch, height, width, out = gradient.shape
    channels, area = padded.shape[3], prod(kernel)
    at_once = _BYTES_AT_ONCE_ON_GPUS if padded.is_cuda else _BYTES_AT_ONCE
    samples = max(1, at_once // (height * width * channels * area))
    strides = padded.stride()
    steps = [strides[1 + i] * geometry.stride[i] for i in range(2)]
    taps = [strides[1 + i] * geometry.dilation[i] for i in range(2)]
    total: Tensor | None = None
    for start in range(0, batch, samples):
        some, some_gradient = padded[start : start + samples], gradient[start : start + samples]
        windows = some.as_strided(
            (len(some), height, width, *kernel, channels), (strides[0], *steps, *taps, 1), some.storage_offset()
        )
        patches = windows.reshape(-1, area * channels)
        product = integer_matmul(some_gradient.reshape(-1, out).t(), patches.t())
        if total is None:
            total = product.long() if batch * height * width > MAX_INNER_SIZE else product
        else:
            total += product
    assert total is not None
    return total


def like_convolution(output: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The output in the memory format that `nn.Conv2d` would choose, for modules that call view on it."""
    return output if is_channels_last(x) or is_channels_last(weight) else output.contiguous()


def _is_even(amounts: Sequence[int]) -> bool:
    return all(amounts[i] == amounts[i + 1] for i in range(0, len(amounts), 2))


class PtqConv2d(nn.Conv2d):
    """`nn.Conv2d` (one group) that trains in int8 arithmetic where that pays."""

    plain_type: type[nn.Module] = nn.Conv2d
    kernel: PtqKernel = "auto"
    stochastic_rounding: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, height, width) to ([batch,] out channels, out height, out width)."""
        return _ptq_convolution(self, input)


class PtqConv1d(nn.Conv1d):
    """`nn.Conv1d` (one group) that trains in int8 arithmetic where that pays."""

    plain_type: type[nn.Module] = nn.Conv1d
    kernel: PtqKernel = "auto"
    stochastic_rounding: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, length) to ([batch,] out channels, out length)."""
        return _ptq_convolution(self, input)


def _ptq_convolution(conv: PtqConv1d | PtqConv2d, input: Tensor) -> Tensor:
    is_single = input.dim() == 1 + len(conv.kernel_size)
    x = input.unsqueeze(0) if is_single else input
    is_int8 = conv.kernel == "int8"
    if conv.kernel == "auto":
        own = not conv.stochastic_rounding
        is_int8 = integers_pay_in_convolution(x, conv.weight, output_positions(conv, x), own)
    is_int8 = is_int8 and flattened_input_size(conv) <= MAX_INNER_SIZE
    if x.numel() == 0 or not is_int8:
        plain: Tensor = conv._conv_forward(input, conv.weight, conv.bias)
        return plain
    output = int8_convolution(conv, x)
    return output.squeeze(0) if is_single else output


def int8_convolution(conv: PtqConv1d | PtqConv2d, x: Tensor) -> Tensor:
    """A convolution with int8 products forward and backward.

    Args:
        conv: A layer with one group.
        x: (batch, channels, ...) floating point, any strides, not empty.

    Returns:
        (batch, out, ...), in the dtype of `x`, or of autocast where that is on.
    """
    amounts = padding_amounts(conv)
    # On a GPU padding comes before rounding, which finds the byte for zero where nothing else has to wait for it.
    is_even = not x.is_cuda and conv.padding_mode == "zeros" and _is_even(amounts)
    if not is_even:
        x = pad(x, amounts, conv.padding_mode)
    padding, stride, dilation = (
        amounts[::2][::-1] if is_even else [0, 0][: len(conv.stride)],
        conv.stride,
        conv.dilation,
    )
    weight, is_flat = conv.weight, len(conv.stride) == 1
    if is_flat:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        padding, stride, dilation = [0, *padding], (1, *stride), (1, *dilation)
    geometry = Geometry((stride[0], stride[1]), (dilation[0], dilation[1]))
    kernels = None if conv.stochastic_rounding else native(x, weight, conv.bias)
    output: Tensor
    around = padding[1], padding[1], padding[0], padding[0]
    if kernels is not None and takes_images(x, weight, around):
        channels_last = is_channels_last(x) or is_channels_last(weight)
        output = kernels.int8_convolution(x, weight, conv.bias, stride, around, dilation, channels_last)
    else:
        setting = _Setting((padding[0], padding[1]), geometry, output_dtype(x), conv.stochastic_rounding)
        output = _Int8Convolution.apply(x, weight, conv.bias, setting)  # type: ignore[no-untyped-call]  # untyped in torch
    return output.squeeze(2) if is_flat else output
