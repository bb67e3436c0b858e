"""Convolutions of the PTQ lane: output, input gradient and weight gradient as int8 products.

Values are quantized before they are spread into patches, so that the large matrices are int8 from the start. That
leaves one scale per sample (output, input gradient) or per channel (weight gradient), and per row of the weight.
"""

from collections.abc import Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedhq_lightning.quantize.convolution import Convolution, in_patch_order, pad, padding_amounts, patches
from fedhq_lightning.quantize.int8_training import output_dtype, quantize_symmetric
from fedhq_lightning.quantize.integer_matmul import integer_matmul


class _Geometry(NamedTuple):
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]


def _per_sample(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.dim()))


def _per_channel(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def _scaled_convolution(x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """fp32 (batch, out, ...) of a padded input and a weight (out, in, *kernel); one scale per sample and per output."""
    integers, scale = quantize_symmetric(x, _per_sample(x))
    weight_integers, weight_scale = quantize_symmetric(in_patch_order(weight), (1,))
    windows = patches(integers, *geometry)  # (batch, *output, kernel elements * in)
    product = integer_matmul(windows.flatten(0, -2), weight_integers)
    output = product.view(*windows.shape[:-1], weight.shape[0]).movedim(-1, 1)
    ones = [1] * len(geometry.kernel_size)
    # Contiguous as nn.Conv2d's own output is, for modules that call view on it.
    return (output * weight_scale.view(-1, *ones) * scale).contiguous()


def _weight_gradient(grad: Tensor, x: Tensor, geometry: _Geometry) -> Tensor:
    """fp32 (out, in, *kernel); one scale per output channel of the gradient and per input channel."""
    grad_integers, grad_scale = quantize_symmetric(grad, _per_channel(grad))
    integers, scale = quantize_symmetric(x, _per_channel(x))
    windows = patches(integers, *geometry).flatten(0, -2)  # (positions, kernel elements * in)
    product = integer_matmul(grad_integers.transpose(0, 1).flatten(1), windows.t())
    by_position = product.view(grad.shape[1], *geometry.kernel_size, x.shape[1])
    ones = [1] * (by_position.dim() - 1)
    return (by_position * scale.flatten() * grad_scale.view(-1, *ones)).movedim(-1, 1).contiguous()


def _input_gradient(grad: Tensor, weight: Tensor, size: Sequence[int], geometry: _Geometry) -> Tensor:
    """fp32 (batch, in, *size): the gradient, strides filled with zeros, convolved with the mirrored weight."""
    kernel_size, stride, dilation = geometry
    spread = grad
    if any(step > 1 for step in stride):
        gaps = [(length - 1) * step + 1 for length, step in zip(grad.shape[2:], stride, strict=True)]
        spread = grad.new_zeros(*grad.shape[:2], *gaps)
        between: tuple[EllipsisType | slice, ...] = (..., *(slice(None, None, step) for step in stride))
        spread[between] = grad
    amounts: list[int] = []
    for i in reversed(range(len(kernel_size))):
        reach = dilation[i] * (kernel_size[i] - 1)
        amounts += [reach, size[i] - spread.shape[2 + i]]
    mirrored = weight.transpose(0, 1).flip(tuple(range(2, weight.dim())))
    return _scaled_convolution(F.pad(spread, amounts), mirrored, _Geometry(kernel_size, (1,) * len(stride), dilation))


class _Int8Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.bias_dtype = geometry, None if bias is None else bias.dtype
        output = _scaled_convolution(x, weight, geometry)
        if bias is not None:
            output += bias.view(-1, *[1] * len(geometry.kernel_size))
        return output.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        is_empty = grad.numel() == 0
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x) if is_empty else _input_gradient(grad, weight, x.shape[2:], ctx.geometry)
            grad_x = grad_x.to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            if not is_empty:
                grad_weight = _weight_gradient(grad, x, ctx.geometry).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.float().sum(_per_channel(grad)).to(ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None, None


def _convolution(conv: Convolution, x: Tensor) -> Tensor:
    is_single = x.dim() == 1 + len(conv.kernel_size)
    x = pad(x.unsqueeze(0) if is_single else x, padding_amounts(conv), conv.padding_mode)
    geometry = _Geometry(conv.kernel_size, conv.stride, conv.dilation)
    output: Tensor = _Int8Convolution.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        x, conv.weight, conv.bias, geometry, output_dtype(x)
    )
    return output.squeeze(0) if is_single else output


class PtqConv1d(nn.Conv1d):
    """`nn.Conv1d` (one group) that trains in int8 arithmetic."""

    plain_type = nn.Conv1d

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, length) to ([batch,] out channels, out length)."""
        return _convolution(self, input)


class PtqConv2d(nn.Conv2d):
    """`nn.Conv2d` (one group) that trains in int8 arithmetic."""

    plain_type = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, height, width) to ([batch,] out channels, out height, out width)."""
        return _convolution(self, input)
