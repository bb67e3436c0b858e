"""Integer layers as an exported program has them: the same bits in few operations.

A program calls one operation after the other, and of a small model's time most goes into calling them. So zero points
are taken off the integers and not off their products, and products are those of floating point numbers that are
integers: exact in any order where no sum can reach 2^24, or 2^53 in fp64, which the weights tell. Large linear layers
alone multiply int8, a quarter of the bytes to read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize.convolution import is_channels_last, pad
from fedhq_lightning.quantize.grid import SMALLEST_SCALE, dequantize_weight, integer_range
from fedhq_lightning.quantize.integer_layers import IntegerConv1d, IntegerConv2d, IntegerLayer, IntegerLinear

_EXACT_SUM = 2**24
"""Up to which fp32 holds every integer."""
_FEW_WEIGHTS = 2**15
"""Up to which a linear layer takes longer to round to int8 than to read four times the bytes."""
_OVERFLOWING_BITS = 8
"""Of weights, on CPUs without VNNI instructions: see `quantize.integer_matmul.has_exact_kernel`."""


def become_program_layers(module: nn.Module) -> None:
    """Put integer layers into the form of a program, in place.

    Layers with a scale for each group of weights or activations in floating point stay as they are.

    Args:
        module: As `convert` returns it, on the CPU.
    """
    for layer in list(module.modules()):
        kind = _PROGRAM_TYPES.get(type(layer))
        if kind is not None and isinstance(layer, IntegerLayer) and layer.has_int8_product():
            layer.__class__ = kind
            assert isinstance(layer, _ProgramLayer)
            layer.prepare()


class _ProgramLayer(IntegerLayer):
    """What they share.

    Attributes:
        quantized_weight: int8, in the shape of the weight.
        output_scale: Buffer, the scales in the shape that multiplies the output and in the dtype that is rescaled in;
            in place of `scale`.
        output_bias: fp32 buffer or None, likewise; in place of `bias`.
        is_exact: Whether no sum of products leaves what fp32 holds exactly.
        given: Of a static range: scale, steps in one, and the integer of zero; None: ranges are dynamic.
    """

    output_scale: Tensor
    output_bias: Tensor | None
    rescaled_in = torch.float32

    def prepare(self) -> None:
        """Compute what depends on the layer alone, and drop what it comes from."""
        self.lowest, self.highest = integer_range(self.scheme.activation_bits or 0)
        most = int(self.quantized_weight.abs().sum(1, dtype=torch.int64).max()) * (self.highest - self.lowest)
        self.is_exact, self.given = most <= _EXACT_SUM, None
        if self.activation_scale is not None and self.activation_zero_point is not None:
            steps = (1.0 / self.activation_scale).item()
            self.given = (self.activation_scale.item(), steps, int(self.activation_zero_point))
        shape = (-1, *[1] * (len(self.weight_shape) - 2))
        constants = {
            "quantized_weight": self.quantized_weight.view(self.weight_shape),
            "output_scale": self.scale.view(shape).to(self.rescaled_in),
            "output_bias": None if self.bias is None else self.bias.view(shape),
        }
        self._buffers.clear()
        for name, value in constants.items():
            self.register_buffer(name, value)

    @property
    def weight(self) -> Tensor:
        """As an integer layer's."""
        return dequantize_weight(self.quantized_weight, self.output_scale.view(-1, 1).float(), self.weight_shape)

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | int]:
        """Values in steps of their grid, of which none is clamped yet; the scale; the integers' lower end less zero.

        Args:
            x: (..., n) fp32. Scale and lower end are (..., 1), or one for all.
        """
        if self.given is not None:
            scale, steps, zero = self.given
            return (x * steps).round_(), scale, self.lowest - zero
        smallest, largest = x.aminmax(dim=-1, keepdim=True)
        smallest, largest = smallest.clamp_max_(0.0), largest.clamp_min_(0.0)
        dynamic = largest.sub_(smallest).div_(float(self.highest - self.lowest)).clamp_min_(SMALLEST_SCALE)
        below = smallest.div_(dynamic).round_()
        return (x * dynamic.reciprocal()).round_(), dynamic, below

    def _centered(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Integers less their zero point, held in fp32 as `x`, and their scale."""
        steps, scale, below = self._rounded(x)
        count = self.highest - self.lowest
        if isinstance(below, Tensor):
            return steps.clamp_min_(below).clamp_max_(below + count), scale
        return steps.clamp_(below, below + count), scale

    def _rescaled(self, product: Tensor, scale: Tensor | float, dtype: torch.dtype) -> Tensor:
        output = _as(_as(product, self.rescaled_in).mul_(self.output_scale).mul_(scale), torch.float32)
        return _as(output if self.output_bias is None else output.add_(self.output_bias), dtype)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    # A program would keep the operation where it does nothing.
    return x if x.dtype == dtype else x.to(dtype)


class _ProgramLinear(_ProgramLayer):
    sums: Tensor

    def prepare(self) -> None:
        super().prepare()
        count, inner = self.quantized_weight.numel(), self.quantized_weight.shape[1]
        self.in_float = self.is_exact and (count <= _FEW_WEIGHTS or inner == 1)  # torch._int_mm gets one wrong
        if not self.in_float:
            self.register_buffer("sums", self.quantized_weight.sum(1, dtype=torch.int32))

    def forward(self, input: Tensor) -> Tensor:
        """As an integer layer's."""
        x = _as(input, torch.float32)
        if self.in_float:
            integers, scale = self._centered(x)
            product = F.linear(integers, self.quantized_weight.to(torch.float32))
            return self._rescaled(product, scale, input.dtype)
        x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        steps, scale, below = self._rounded(x)
        zero = self.lowest - below
        integers = steps.add_(zero).clamp_(self.lowest, self.highest)
        # Not as a transposed column may lie, which torch._int_mm gets wrong in one row.
        product = self._product(integers.to(torch.int8, memory_format=torch.contiguous_format))
        correction = zero.to(torch.int32) * self.sums if isinstance(zero, Tensor) else self.sums * zero
        output = self._rescaled(product - correction, scale, input.dtype)
        return output if input.dim() == 2 else output.view(-1, *input.shape[1:-1], output.shape[1])

    def _product(self, integers: Tensor) -> Tensor:
        weight = self.quantized_weight
        if self.scheme.weight_bits < _OVERFLOWING_BITS:
            return torch._int_mm(integers, weight.t())
        halves, rest = torch._int_mm(integers, (weight >> 1).t()), torch._int_mm(integers, (weight & 1).t())
        return rest.add_(halves, alpha=2)


class _ProgramConvolution(_ProgramLayer):
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    padding_amounts: list[int]
    channels_last: bool

    def prepare(self) -> None:
        # As integer layers rescale what they compute in fp64.
        self.rescaled_in = torch.float32 if self.groups == 1 else torch.float64
        super().prepare()

    def forward(self, input: Tensor) -> Tensor:
        """As an integer layer's."""
        is_single = input.dim() == 1 + len(self.kernel_size)
        x = _as(input.unsqueeze(0) if is_single else input, torch.float32)
        # As nn.Conv2d's own output lies: norms and means that follow add up in that order.
        channels_last = self.channels_last or is_channels_last(x)
        amounts = list(self.padding_amounts)
        if self.padding_mode != "zeros":
            x, amounts = pad(x, amounts, self.padding_mode), [0] * len(amounts)
        integers, scale = self._centered_samples(x)
        padding = amounts[-2::-2]
        if padding != amounts[::-2]:  # more after than before, as an even kernel has it
            integers, padding = pad(integers, amounts, "zeros"), [0] * len(padding)
        dtype = torch.float32 if self.is_exact else torch.float64
        convolve: Callable[..., Tensor] = F.conv1d if len(padding) == 1 else F.conv2d
        product = convolve(
            *(_as(integers, dtype), self.quantized_weight.to(dtype), None),
            *(self.stride, padding, self.dilation, self.groups),
        )
        output = self._rescaled(product, scale, input.dtype)
        output = output.contiguous(memory_format=torch.channels_last) if channels_last else output
        return output.squeeze(0) if is_single else output

    def _centered_samples(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """As `_centered`, of (batch, channels, ...), one range for each sample; in the memory format of `x`."""
        in_order = x.permute(0, 2, 3, 1) if is_channels_last(x) else x
        flat, scale = self._centered(in_order.flatten(1))
        integers = flat.view(-1, *in_order.shape[1:])
        integers = integers if in_order is x else integers.permute(0, 3, 1, 2)
        return integers, scale.view(-1, *[1] * (x.dim() - 1)) if isinstance(scale, Tensor) else scale


_PROGRAM_TYPES: dict[type[nn.Module], type[_ProgramLayer]] = {
    IntegerLinear: _ProgramLinear,
    IntegerConv1d: _ProgramConvolution,
    IntegerConv2d: _ProgramConvolution,
}
