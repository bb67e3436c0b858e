"""Layers of the deployed model: integer weights, integer products, plain torch operations.

A sample's output does not depend on what else is in its batch, to the last bit: products are exact, and everything
around them is element by element. Where activations are quantized and a row of weights has one scale, the product is
one of int8 matrices. Elsewhere (groups of weights, weight-only schemes, grouped convolutions) the factors are integers
held in fp64, few enough bits that every partial sum is an integer below 2^53, which no order of summation can round.
For that, weights of several scales are put on one fixed point per output channel, and activations of weight-only
schemes on one per row or sample: 28 bits below the largest, or half of 52 - log2(inputs) where both need one (21 bits
for 1,024 inputs).
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize import integer_forward
from fedhq_lightning.quantize.activation_ranges import StaticGrid, calibrated_range, static_integers
from fedhq_lightning.quantize.convolution import Convolution, is_channels_last, pad, padding_amounts
from fedhq_lightning.quantize.grid import dequantize_weight, quantize_activation, quantize_weight
from fedhq_lightning.quantize.integer_matmul import MAX_INNER_SIZE
from fedhq_lightning.quantize.native.lanes import native_without_gradients, takes_rows
from fedhq_lightning.quantize.scheme import LayerScheme

_EXACT_BITS = 52  # of fp64's 53, one kept in reserve for rounding up to a power of two
_MOST_BITS = 28
_SMALLEST = torch.finfo(torch.float32).smallest_normal


class IntegerLayer(nn.Module):
    """What integer layers share.

    Args:
        layer: A plain layer; its weight is rounded to the grid, its bias kept in fp32.
        scheme: The grid. Where it has a static range that is not calibrated, ranges are dynamic.

    Attributes:
        quantized_weight: int8 (out, in_flat) buffer.
        scale: fp32 (out, groups) buffer.
        bias: fp32 (out,) buffer or None.
        activation_scale: fp32 () buffer, or None where ranges are dynamic.
        activation_zero_point: fp32 () buffer or None, as the scale.
        scheme: The grid.
    """

    quantized_weight: Tensor
    scale: Tensor
    bias: Tensor | None
    activation_scale: Tensor | None
    activation_zero_point: Tensor | None

    def __init__(self, layer: nn.Linear | Convolution, scheme: LayerScheme) -> None:
        super().__init__()
        held, static = calibrated_range(layer, scheme), None
        if held is None:
            scheme = replace(scheme, static_range=False)
        else:
            assert scheme.activation_bits is not None
            static = StaticGrid.of(held, scheme.activation_bits)
        self.scheme = scheme
        self.weight_shape = tuple(layer.weight.shape)
        integers, scale = quantize_weight(layer.weight, scheme)
        self.register_buffer("quantized_weight", integers)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float().clone())
        # Once, so that a runtime finds constants, and no two ways to compute them can differ.
        self.register_buffer("activation_scale", None if static is None else static.scale.clone())
        self.register_buffer("activation_zero_point", None if static is None else static.zero_point.clone())

    @property
    def weight(self) -> Tensor:
        """The weight that the integers stand for, fp32, in the shape of the layer that was converted."""
        return dequantize_weight(self.quantized_weight, self.scale, self.weight_shape)

    def extra_repr(self) -> str:
        """Scheme and weight shape."""
        return f"{self.scheme}, weight {self.weight_shape}"

    def _integers(self, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Activations as integers (int8, or in fp64), their scale, and their zero point if they have one."""
        if (static := self._static()) is not None:
            scale, zero_point = static.for_dims(x.dim())
            assert self.scheme.activation_bits is not None
            integers = static_integers(x.float(), scale, zero_point, self.scheme.activation_bits)
            return integers.to(torch.int8), scale, zero_point
        if self.scheme.activation_bits is not None:
            return quantize_activation(x, self.scheme.activation_bits, dims)
        integers, scale = _fixed_point(x.double(), dims, self._fixed_point_bits()[0])
        return integers, scale, None

    def _static(self) -> StaticGrid | None:
        if self.activation_scale is None or self.activation_zero_point is None:
            return None
        return StaticGrid(self.activation_scale, self.activation_zero_point)

    def _fixed_point_bits(self) -> tuple[int, int]:
        """Bits of activations and of weights, so that a sum over the flattened input stays exact in fp64."""
        free = _EXACT_BITS - math.ceil(math.log2(self.quantized_weight.shape[1]))
        if self.scale.shape[1] == 1:
            weight_bits = self.scheme.weight_bits - 1
            return min(free - weight_bits, _MOST_BITS), weight_bits
        activation_bits = self.scheme.activation_bits or free // 2
        return activation_bits, min(free - activation_bits, _MOST_BITS)

    def _wide_weight(self) -> tuple[Tensor, Tensor]:
        """The weight as integers in fp64 (out, in_flat), and one scale (out, 1) for each row."""
        if self.scale.shape[1] == 1:
            return self.quantized_weight.double(), self.scale.double()
        groups = self.quantized_weight.view(*self.scale.shape, -1).double() * self.scale.double().unsqueeze(2)
        return _fixed_point(groups.flatten(1), (1,), self._fixed_point_bits()[1])

    def has_int8_product(self) -> bool:
        """Whether sums fit int32 and each row has one scale; a convolution in groups computes in fp64 all the same."""
        size, has_one_scale = self.quantized_weight.shape[1], self.scale.shape[1] == 1
        return self.scheme.activation_bits is not None and has_one_scale and size <= MAX_INNER_SIZE

    def _weight(self) -> integer_forward.Weight:
        sums = self.quantized_weight.sum(1, keepdim=True, dtype=torch.int32)
        return integer_forward.Weight(self.quantized_weight, self.scale, sums)


def _fixed_point(values: Tensor, dims: tuple[int, ...], bits: int) -> tuple[Tensor, Tensor]:
    """Integers up to 2^bits, held in fp64, and their scale, with `dims` kept as size 1."""
    step = values.abs().amax(dim=dims, keepdim=True).clamp(min=_SMALLEST) / 2**bits
    return (values / step).round(), step


def _wide(integers: Tensor, zero_point: Tensor | None) -> Tensor:
    return integers.double() if zero_point is None else integers.double() - zero_point


class IntegerLinear(IntegerLayer):
    """`nn.Linear` of a deployed model; one activation range per row, or a static one."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out), in the input's dtype; computed in fp32 between integers."""
        if self.has_int8_product():
            kernels = native_without_gradients(input, self.scale, self.bias)
            if kernels is not None and self._static() is None and takes_rows(input, self.quantized_weight):
                bits = self.scheme.activation_bits
                answer: Tensor = kernels.deployed_linear(input, self.quantized_weight, self.scale, self.bias, bits)
                return answer
            rows = input.reshape(-1, input.shape[-1])
            output, _ = integer_forward.linear(rows, self._weight(), self.bias, self.scheme, self._static())
            return output.view(*input.shape[:-1], output.shape[1])
        integers, scale, zero_point = self._integers(input, (-1,))
        weight, weight_scale = self._wide_weight()
        output = (F.linear(_wide(integers, zero_point), weight) * weight_scale.squeeze(1) * scale).float()
        output = output if self.bias is None else output + self.bias
        return output.to(input.dtype)


class _IntegerConvolution(IntegerLayer):
    def __init__(self, layer: Convolution, scheme: LayerScheme) -> None:
        super().__init__(layer, scheme)
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.groups, self.padding_mode, self.padding_amounts = layer.groups, layer.padding_mode, padding_amounts(layer)
        self.channels_last = is_channels_last(layer.weight)

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, ...) to ([batch,] out channels, ...), in the input's dtype."""
        is_single = input.dim() == 1 + len(self.kernel_size)
        x = input.unsqueeze(0) if is_single else input
        has_int8_product = self.groups == 1 and self.has_int8_product()
        output = self._by_int8_product(x) if has_int8_product else self._by_wide_product(x)
        return output.squeeze(0) if is_single else output

    def _by_int8_product(self, x: Tensor) -> Tensor:
        x, amounts, geometry = integer_forward.in_two_dimensions(
            x, self.stride, self.dilation, self.padding_amounts, self.padding_mode
        )
        is_flat = len(self.kernel_size) == 1
        kernel = (1, *self.kernel_size) if is_flat else tuple(self.kernel_size)
        # As nn.Conv2d's own output lies: norms and means that follow add up in that order.
        channels_last = self.channels_last or is_channels_last(x)
        output, _, _ = integer_forward.convolution(
            x, self._weight(), kernel, self.bias, self.scheme, amounts, geometry, channels_last, self._static()
        )
        return output.squeeze(2) if is_flat else output

    def _by_wide_product(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = pad(x, self.padding_amounts, self.padding_mode)
        integers, scale, zero_point = self._integers(x, tuple(range(1, x.dim())))
        ones = [1] * len(self.kernel_size)
        convolve = F.conv1d if len(ones) == 1 else F.conv2d
        weight, weight_scale = self._wide_weight()
        weight = weight.view(self.weight_shape)
        exact = convolve(_wide(integers, zero_point), weight, None, self.stride, 0, self.dilation, self.groups)
        output = (exact * weight_scale.view(-1, *ones) * scale).float()
        output = output if self.bias is None else output + self.bias.view(-1, *ones)
        return output.to(dtype)


class IntegerConv1d(_IntegerConvolution):
    """`nn.Conv1d` of a deployed model; one activation range per sample, or a static one."""


class IntegerConv2d(_IntegerConvolution):
    """`nn.Conv2d` of a deployed model; one activation range per sample, or a static one."""


INTEGER_TYPES: dict[type[nn.Module], type[IntegerLinear] | type[_IntegerConvolution]] = {
    nn.Linear: IntegerLinear,
    nn.Conv1d: IntegerConv1d,
    nn.Conv2d: IntegerConv2d,
}
