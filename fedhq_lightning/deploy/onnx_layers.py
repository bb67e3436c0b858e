"""Integer layers for export to ONNX: stand-ins that torch traces as one operator each, and what ONNX computes for them.

The numerics are those of `quantize.integer_layers`, operation by operation, in one of these ways:

- "integers": activations as uint8 times weights as int8 into int32 (`MatMulInteger`). Exact.
- "whole numbers": a convolution of floating point numbers that are integers, with products and sums below 2^24, which
  float32 holds exactly in any order. Runtimes have fast kernels for it, which `ConvInteger` has not. Exact.
- "parts": the same where sums could be larger: the weight in two parts of four bits, one convolution each. Exact.
- "grid": weights of several scales a row, in floating point. Activations are on their grid.
- "weights": the same with activations as they are, as a scheme of weights alone has it.
- "static": between QuantizeLinear and DequantizeLinear, of which runtimes and devices make integer operators of their
  own; for 8-bit activations with a static range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize.convolution import pad
from fedhq_lightning.quantize.grid import SMALLEST_SCALE, integer_range
from fedhq_lightning.quantize.integer_layers import IntegerConv1d, IntegerConv2d, IntegerLayer

Way = Literal["integers", "whole numbers", "parts", "grid", "weights", "static"]

_EXACT_SUM = 2**24
"""Up to which float32 holds every integer."""
EITHER = "Sum"
"""Operator of the nodes that hold a layer's two outputs while a model is exported; nothing of torch becomes one."""
_FLOAT, _UINT8, _INT32 = 1, 2, 6
"""ONNX's numbers of types."""

# Opaque to torch.export, which needs the shape of the result and nothing else.
_LIBRARY = torch.library.Library("fedhq_onnx", "DEF")  # type: ignore[no-untyped-call]  # torch does not type it
_LIBRARY.define(  # type: ignore[no-untyped-call]  # nor this
    "layer(Tensor x, Tensor weight, Tensor scale, Tensor? zero, Tensor? bias, Tensor? sums, "
    "Tensor? range_scale, Tensor? range_zero, str way, int bits, int[] grouped, int[] strides, int[] pads, "
    "int[] dilations, int groups) -> Tensor"
)


@torch.library.register_fake("fedhq_onnx::layer", lib=_LIBRARY)  # type: ignore[untyped-decorator]  # nor this
def _result(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Any, bias: Any, sums: Any, range_scale: Any, range_zero: Any,
    way: str, bits: int, grouped: list[int], strides: list[int], pads: list[int], dilations: list[int], groups: int,
) -> Tensor:  # fmt: skip
    if not strides:
        return x.new_empty((*x.shape[:-1], weight.shape[1]))
    convolve = F.conv1d if len(strides) == 1 else F.conv2d
    before, after = pads[: len(strides)], pads[len(strides) :]
    amounts = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
    return convolve(F.pad(x, amounts), weight.to(x.dtype), None, strides, 0, dilations, groups)


class LayerForOnnx(nn.Module):
    """One integer layer as the operator that torch traces.

    Args:
        layer: An integer layer.
    """

    def __init__(self, layer: IntegerLayer) -> None:
        super().__init__()
        self.way: Way = best_way(layer)
        self.bits = layer.scheme.activation_bits or 0
        self.strides, self.pads, self.dilations, self.groups = list[int](), list[int](), list[int](), 1
        self.padding_mode, self.amounts = "zeros", list[int]()
        if isinstance(layer, IntegerConv1d | IntegerConv2d):
            self.strides, self.dilations, self.groups = list(layer.stride), list(layer.dilation), layer.groups
            self._take_padding(list(layer.padding_amounts), layer.padding_mode)
        self.grouped = self._take_weight(layer)
        ones = [1] * len(self.strides)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.view(-1, *ones).clone())
        # Zero points of zero, which operators that runtimes make of a dequantized weight must have.
        zero = torch.zeros(len(layer.scale), dtype=torch.int8) if self.way == "static" else None
        self.register_buffer("zero", zero)
        sums = layer.quantized_weight.sum(1, dtype=torch.int32) if self.way == "integers" else None
        self.register_buffer("sums", sums)
        range_zero = layer.activation_zero_point
        if range_zero is not None:
            range_zero = range_zero - integer_range(self.bits)[0]
            range_zero = range_zero.to(torch.uint8) if self.way == "static" else range_zero
        self.register_buffer("range_scale", layer.activation_scale)
        self.register_buffer("range_zero", range_zero)

    def _take_padding(self, amounts: list[int], mode: str) -> None:
        """Amounts as `F.pad` takes them: zeros become the operator's own padding."""
        if mode == "zeros":
            self.pads = [*amounts[-2::-2], *amounts[::-2]]
        else:
            self.padding_mode, self.amounts, self.pads = mode, amounts, [0] * len(amounts)

    def _take_weight(self, layer: IntegerLayer) -> list[int]:
        """Keep integers and scales so that the one times the other are the weight, or, of a row's scale, the output.

        Returns:
            The integers' shape with groups of one scale, (out, groups, -1) or (groups, -1, out); empty without groups.
        """
        integers, scale, grouped = layer.quantized_weight.view(layer.weight_shape), layer.scale, list[int]()
        if layer.scale.shape[1] > 1:
            grouped = [*scale.shape, -1] if self.strides else [scale.shape[1], -1, scale.shape[0]]
            scale = scale.unsqueeze(2) if self.strides else scale.t().unsqueeze(1)
        elif self.way == "static" or not self.strides:
            scale = scale.flatten()
        else:
            scale = scale.view(-1, *[1] * len(self.strides))
        self.register_buffer("integers", (integers if self.strides else integers.t()).clone().contiguous())
        self.register_buffer("scale", scale.clone().contiguous())
        return grouped

    def forward(self, input: Tensor) -> Tensor:
        """As the layer's: an operator that no kernel computes, to be traced."""
        is_single = bool(self.strides) and input.dim() == 1 + len(self.strides)
        x = pad(input.unsqueeze(0) if is_single else input, self.amounts, self.padding_mode)
        output: Tensor = torch.ops.fedhq_onnx.layer(
            *(x.float(), self.integers, self.scale, self.zero, self.bias, self.sums, self.range_scale, self.range_zero),
            *(self.way, self.bits, self.grouped, self.strides, self.pads, self.dilations, self.groups),
        )
        output = output.to(input.dtype)
        return output.squeeze(0) if is_single else output


def best_way(layer: IntegerLayer) -> Way:
    """The way that is exact where there is one, and fast."""
    scheme = layer.scheme
    if scheme.activation_bits is None:
        return "weights"
    if layer.scale.shape[1] > 1:
        return "grid"
    if layer.activation_scale is not None and scheme.activation_bits == 8:
        return "static"
    if not isinstance(layer, IntegerConv1d | IntegerConv2d):
        return "integers"
    largest = int(layer.quantized_weight.abs().sum(1, dtype=torch.int64).max()) * (2**scheme.activation_bits - 1)
    return "whole numbers" if largest <= _EXACT_SUM else "parts"


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` takes as its `custom_translation_table`.

    A layer ends with one `EITHER` node: its inputs are the layer's output, and what it would be in float32. Whoever
    exports takes one of the two in its place.
    """
    return {torch.ops.fedhq_onnx.layer.default: _both}


def _both(
    x: Any, weight: Any, scale: Any, zero: Any, bias: Any, sums: Any, range_scale: Any, range_zero: Any,
    way: str, bits: int, grouped: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int],
    groups: int,
) -> Any:  # fmt: skip
    from onnxscript import opset21

    tensors = x, weight, scale, zero, bias, sums, range_scale, range_zero
    geometry = bits, grouped, strides, pads, dilations, groups
    integer, in_float = (_translated(*tensors, each, *geometry) for each in (way, "weights"))
    return opset21.Sum(integer, in_float)


def _translated(
    x: Any, weight: Any, scale: Any, zero: Any, bias: Any, sums: Any, range_scale: Any, range_zero: Any,
    way: str, bits: int, grouped: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int],
    groups: int,
) -> Any:  # fmt: skip
    """ONNX nodes of one layer; what depends on the weight alone a runtime computes once, as it loads the model."""
    from onnxscript import opset21

    op: Any = opset21

    def product(left: Any, right: Any) -> Any:
        if not strides:
            return op.MatMul(left, right)
        return op.Conv(left, right, strides=strides, pads=pads, dilations=dilations, group=groups)

    if way == "static":
        left = op.DequantizeLinear(op.QuantizeLinear(x, range_scale, range_zero), range_scale, range_zero)
        output = product(left, op.DequantizeLinear(weight, scale, zero, axis=0 if strides else 1))
    elif way == "weights":
        output = product(x, _dequantized(op, weight, scale, grouped, strides))
    else:
        axes = list(range(1, 2 + len(strides))) if strides else [-1]
        steps, step, zero = _steps(op, x, 2**bits - 1, axes, range_scale, range_zero)
        if way == "integers":
            levels = op.Cast(op.Clip(op.Add(steps, zero), 0.0, float(2**bits - 1)), to=_UINT8)
            exact = op.Sub(op.MatMulInteger(levels, weight), op.Mul(op.Cast(zero, to=_INT32), sums))
            output = op.Mul(op.Mul(op.Cast(exact, to=_FLOAT), scale), step)
        else:
            whole = op.Min(op.Max(steps, op.Neg(zero)), op.Sub(float(2**bits - 1), zero))
            # A one that is not known before the model runs: a runtime would multiply the integers of the weight by a
            # constant once and for all, and products of the result are no longer exact.
            one = op.Div(step, step)
            if way == "grid":
                output = product(whole, _dequantized(op, weight, scale, grouped, strides))
            else:
                output = _of_whole_numbers(op, product, whole, weight, scale, one, way == "parts")
            output = op.Mul(output, step)
    return output if bias is None else op.Add(output, bias)


def _steps(op: Any, x: Any, top: int, axes: list[int], range_scale: Any, range_zero: Any) -> tuple[Any, Any, Any]:
    """Activations in steps of their grid, rounded; the step; and the zero point, counted from the lowest level."""
    if range_scale is None:
        axes = op.Constant(value_ints=axes)
        smallest = op.Min(op.ReduceMin(x, axes, keepdims=1), 0.0)
        largest = op.Max(op.ReduceMax(x, axes, keepdims=1), 0.0)
        step = op.Max(op.Div(op.Sub(largest, smallest), float(top)), SMALLEST_SCALE)
        zero = op.Neg(op.Round(op.Div(smallest, step)))
    else:
        step, zero = range_scale, range_zero
    # The reciprocal first, as `activation_integers` does: dividing would round differently. Of halves, because a
    # runtime takes a product with one over something for a division.
    return op.Round(op.Mul(x, op.Div(0.5, op.Mul(step, 0.5)))), step, zero


def _of_whole_numbers(
    op: Any, product: Callable[[Any, Any], Any], whole: Any, weight: Any, scale: Any, one: Any, in_parts: bool
) -> Any:
    weight = op.Cast(weight, to=_FLOAT)
    if in_parts:
        # Sixteenths, and what is left: sums of either are exact, and adding the two rounds as a cast of int32 would.
        high = op.Round(op.Div(weight, 16.0))
        low = op.Sub(weight, op.Mul(high, 16.0))
        exact = op.Add(op.Mul(product(whole, high), op.Mul(one, 16.0)), product(whole, low))
    else:
        exact = product(whole, weight)
    return op.Mul(exact, op.Mul(scale, one))


def _dequantized(op: Any, weight: Any, scale: Any, grouped: Sequence[int], strides: Sequence[int]) -> Any:
    values = op.Cast(weight, to=_FLOAT)
    if not grouped:
        if strides:
            scale = op.Reshape(scale, op.Constant(value_ints=[-1, 1, *[1] * len(strides)]))
        return op.Mul(values, scale)
    values = op.Mul(op.Reshape(values, op.Constant(value_ints=grouped)), scale)
    return op.Reshape(values, op.Shape(weight))
