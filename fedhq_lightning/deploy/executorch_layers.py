"""Integer layers for ExecuTorch: in the form by which XNNPACK knows its kernels of dynamic quantization.

Their grid is the layer's own: activations asymmetric in 8 bits, with a range for every row or sample that includes
zero, weights symmetric with one scale for each output channel. They find scales and zero points in their own order of
operations, so that a value may be rounded to the integer beside; products are exact.

XNNPACK takes a convolution with one input channel in each group for a depthwise one, for which it has no such kernel.
With a single channel in all the channel goes in twice, the second time with weights of zero; depthwise convolutions
compute in float32 with weights on their grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize.integer_layers import IntegerConv1d, IntegerConv2d, IntegerLayer

_KERNEL_BITS = 8
_PACKED_BITS = 4
_SMALLEST_SCALE = torch.finfo(torch.float32).eps
"""Where a range is empty; XNNPACK finds its own."""


def refusal(layer: IntegerLayer) -> str:
    """Why XNNPACK cannot compute a layer on its grid, and what to do; empty if it can."""
    scheme = layer.scheme
    if scheme.activation_bits != _KERNEL_BITS:
        has = "in floating point" if scheme.activation_bits is None else f"of {scheme.activation_bits} bits"
        return f"has activations {has}, where XNNPACK's have 8 bits (w{scheme.weight_bits}a8 has)"
    if scheme.static_range:
        return "has a static activation range, for which XNNPACK wants outputs on a grid too (leave the s out)"
    if layer.scale.shape[1] > 1:
        return "has a scale for each group of weights, which XNNPACK rounds to bfloat16 (leave -g out)"
    if isinstance(layer, IntegerConv1d | IntegerConv2d) and layer.padding_mode != "zeros":
        return f"is padded by '{layer.padding_mode}', which XNNPACK does not know (padding_mode='zeros')"
    return ""


class LayerForExecutorch(nn.Module):
    """One integer layer as XNNPACK's partitioner finds it.

    Args:
        layer: An integer layer that is not refused.
        in_float: Whether it computes in float32, with weights on their grid.

    Attributes:
        values: fp32, the weight on its grid, where the layer computes in float32; else
        integers: int8, in the shape of the weight, and
        scale: fp32 (out,).
        bias: fp32 (out,), zeros where the layer has none.
        lowest: The smallest integer that a weight may be.
    """

    values: Tensor
    integers: Tensor
    scale: Tensor
    zero_points: Tensor
    bias: Tensor
    copies: Tensor | None

    def __init__(self, layer: IntegerLayer, in_float: bool = False) -> None:
        super().__init__()
        shape, self.strides = layer.weight_shape, list[int]()
        integers = layer.quantized_weight.view(shape)
        self.in_float, self.is_flat, copies = in_float, isinstance(layer, IntegerConv1d), None
        if isinstance(layer, IntegerConv1d | IntegerConv2d):
            self.strides, self.dilations, self.groups = list(layer.stride), list(layer.dilation), layer.groups
            before, after = layer.padding_amounts[-2::-2], layer.padding_amounts[::-2]
            # More padding after than before, as an even kernel has it: a row of zeros makes that kernel odd.
            odd = [extra for start, end in zip(before[::-1], after[::-1], strict=True) for extra in (end - start, 0)]
            integers, self.pads = F.pad(integers, odd), list(after)
            if self.is_flat:
                integers, self.strides, self.dilations = integers.unsqueeze(2), [1, *self.strides], [1, *self.dilations]
                self.pads = [0, *self.pads]
            self.in_float = self.in_float or (shape[1] == 1 and self.groups > 1)
            if shape[1] == 1 and not self.in_float:
                integers, copies = torch.cat([integers, torch.zeros_like(integers)], 1), torch.ones(1, 2, 1, 1)
        packs = not self.strides and layer.scheme.weight_bits <= _PACKED_BITS and shape[1] % 2 == 0
        self.lowest = -(2 ** (_PACKED_BITS - 1)) if packs else -(2 ** (_KERNEL_BITS - 1))
        bias = torch.zeros(shape[0]) if layer.bias is None else layer.bias
        scale = layer.scale.flatten()
        if self.in_float:
            self.register_buffer("values", integers * scale.view(-1, *[1] * (integers.dim() - 1)))
        else:
            self.register_buffer("integers", integers.contiguous().clone())
            self.register_buffer("scale", scale.clone())
            self.register_buffer("zero_points", torch.zeros(shape[0], dtype=torch.int64))
        self.register_buffer("bias", bias.clone())
        self.register_buffer("copies", copies)

    def forward(self, input: Tensor) -> Tensor:
        """As the layer's, in operations that are recognized; a convolution's range is told of a whole batch here."""
        weight = self.values if self.in_float else self._weight()
        if not self.strides:
            return F.linear(input if self.in_float else self._rows_on_grid(input), weight, self.bias)
        is_single = input.dim() == 2 + (not self.is_flat)
        x = input.unsqueeze(0) if is_single else input
        x = x.unsqueeze(2) if self.is_flat else x
        x = x if self.copies is None else x * self.copies  # in XNNPACK, where a concatenation is not
        x = x if self.in_float else self._images_on_grid(x)
        output = F.conv2d(x, weight, self.bias, self.strides, self.pads, self.dilations, self.groups)
        output = output.squeeze(2) if self.is_flat else output
        return output.squeeze(0) if is_single else output

    def _weight(self) -> Tensor:
        ends = (self.lowest, -self.lowest - 1)
        values: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.integers, self.scale, self.zero_points, 0, *ends, torch.int8
        )
        return values

    def _rows_on_grid(self, x: Tensor) -> Tensor:
        quantized, ends = torch.ops.quantized_decomposed, (-128, 127, torch.int8)
        scale, zero_point = quantized.choose_qparams_per_token_asymmetric(x, torch.int8)
        integers = quantized.quantize_per_token(x, scale, zero_point, *ends)
        values: Tensor = quantized.dequantize_per_token(integers, scale, zero_point, *ends, torch.float32)
        return values

    def _images_on_grid(self, x: Tensor) -> Tensor:
        quantized, ends = torch.ops.quantized_decomposed, (-128, 127)
        scale, zero_point = quantized.choose_qparams(x, *ends, _SMALLEST_SCALE, torch.int8)
        integers = quantized.quantize_per_tensor(x, scale, zero_point, *ends, torch.int8)
        values: Tensor = quantized.dequantize_per_tensor(integers, scale, zero_point, *ends, torch.int8)
        return values
