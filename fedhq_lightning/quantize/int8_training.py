"""Training in int8 arithmetic: the PTQ lane's linear layer.

Output, input gradient and weight gradient are integer products. Input and weight are quantized once, symmetrically and
per row, and kept as int8 for the backward. There the gradient takes up the scale that runs along the inner dimension of
its product (the weight's rows for the input gradient, the input's rows for the weight gradient) before it is quantized
itself, so that neither operand is quantized again. Master weights, biases and everything between layers stay in
floating point. `int8_convolution` does the same for convolutions. Where `native` has kernels for a layer they compute,
with the same bits; what is here is the reference, and computes elsewhere.

Source: the idea of torchao 0.18, `prototype/quantized_training/int8_mixed_precision.py`, which quantizes both operands
of every product anew; unlike it, this works under CPU autocast, on strided and empty inputs, and with gradients below
1e-10.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedhq_lightning.quantize.compilation import compiled
from fedhq_lightning.quantize.integer_matmul import MAX_INNER_SIZE, integer_matmul
from fedhq_lightning.quantize.kernel_choice import integers_pay_in_linear
from fedhq_lightning.quantize.lane_options import PtqKernel
from fedhq_lightning.quantize.native.lanes import native, takes_rows

HIGHEST = 127
SMALLEST_SCALE = torch.finfo(torch.float32).smallest_normal
_PRODUCTS_AT_ONCE, _PRODUCTS_AT_ONCE_ON_GPUS = 2**18, 2**28


def symmetric_scale(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """fp32 scale at which 127 steps reach the largest magnitude, with `dims` kept as size 1; for kernels to fuse."""
    return (x.abs().amax(dim=dims, keepdim=True) / HIGHEST).clamp(min=SMALLEST_SCALE)


def round_to_scale(x: Tensor, scale: Tensor, seed: Tensor | None = None) -> Tensor:
    """fp32 integers -127..127, for kernels to fuse; rounded stochastically where there is a seed (int64, one value)."""
    steps = x * (1.0 / scale)
    if seed is None:
        return steps.round()
    # In fp32, 127 and the noise nearest to 1 make 128.
    return (steps + uniform_noise(steps, seed)).floor().clamp(-HIGHEST, HIGHEST)


def uniform_noise(like: Tensor, seed: Tensor) -> Tensor:
    """Numbers in [0, 1) that depend on a value's place and the seed alone, so that kernels can fuse them.

    Source: the finalizer of MurmurHash3 (Appleby), on 32 bits held in int64.
    """
    place = torch.arange(like.numel(), device=like.device).view(like.shape)
    bits = (place * 0x61C88647 + seed) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 16)) * 0x05EBCA6B) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 13)) * 0x42B2AE35) & 0xFFFFFFFF
    # 24 bits: what fp32 holds below 1.
    return ((bits ^ (bits >> 16)) >> 8).float() * 2.0**-24


def noise_seed(stochastic: bool) -> Tensor | None:
    """A seed for one backward pass, from torch's generator; None for rounding to nearest."""
    return torch.randint(2**31, ()) if stochastic else None


@compiled
def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) to int8 and fp32 scales (rows, 1). Values that are not finite show in their scale."""
    x = x.float()
    scale = symmetric_scale(x, (1,))
    return round_to_scale(x, scale).to(torch.int8), scale


@compiled
def _quantize_gradient(
    gradient: Tensor, x_scale: Tensor, weight_scale: Tensor, needs_rows: bool, seed: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """The gradient (rows, out) in the two forms that its products take.

    Scales are (rows, 1) of the input and (out, 1) of the weight. First by rows, the weight's scale folded in, then by
    columns, the input's folded in: int8, with scales (rows, 1) and (1, out).
    """
    gradient = gradient.float()
    by_rows = row_scale = None
    if needs_rows:
        folded = gradient * weight_scale.t()
        row_scale = symmetric_scale(folded, (1,))
        by_rows = round_to_scale(folded, row_scale, seed).to(torch.int8)
    folded = gradient * x_scale
    column_scale = symmetric_scale(folded, (0,))
    by_columns = round_to_scale(folded, column_scale, seed).to(torch.int8)
    return by_rows, row_scale, by_columns, column_scale


@compiled
def _rescale(product: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int32 (rows, out) to `dtype`; scales (rows, 1) and (out, 1), bias (out,)."""
    # One scale after the other: their own product could underflow where the result does not.
    output = product.float() * weight_scale.t() * x_scale
    return (output if bias is None else output + bias.float()).to(dtype)


@compiled
def rescale_rows(product: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int32 (rows, columns) times scales (rows, 1), in `dtype`."""
    return (product.float() * scale).to(dtype)


@compiled
def _rescale_into(product: Tensor, scale: Tensor, corrections: Tensor | None, output: Tensor) -> None:
    """int32 (rows, columns) less corrections (rows, 1), times scales (rows, 1), written to `output`."""
    exact = product if corrections is None else product - corrections
    output.copy_(exact.float() * scale)


@compiled
def _corrections(gradient: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
    """What zero points (rows, 1) add to the products of int8 (rows, out): (1, out) in an integer dtype."""
    return (gradient.int() * zero_point.int()).sum(0, keepdim=True, dtype=dtype)


def _weight_gradient(
    gradient: Tensor, scale: Tensor, x: Tensor, zero_point: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(out, in) from int8 (rows, out), its scales (1, out), and int8 (rows, in) with zero points (rows, 1).

    A few rows of the product at a time: they stay in a CPU's cache until they are rescaled, and int32 takes no memory
    beside the gradient.
    """
    corrections = None
    if zero_point is not None:
        sums = torch.int32 if len(x) <= MAX_INNER_SIZE else torch.int64
        corrections = _corrections(gradient, zero_point, sums).t()
    output = x.new_empty(gradient.shape[1], x.shape[1], dtype=dtype)
    size = max(16, (_PRODUCTS_AT_ONCE_ON_GPUS if x.is_cuda else _PRODUCTS_AT_ONCE) // x.shape[1])
    for start in range(0, gradient.shape[1], size):
        rows = slice(start, start + size)
        product = integer_matmul(gradient[:, rows].t(), x.t())
        some = None if corrections is None else corrections[rows]
        _rescale_into(product, scale[:, rows].t(), some, output[rows])
    return output


class Factor(NamedTuple):
    """One side of a linear layer's product, as the backward finds it again.

    Attributes:
        integers: int8 (rows, in) or (out, in).
        scale: fp32, one a row, as a column.
        zero_point: As the scale, with integral values; None: zero is 0.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None = None


def linear_gradients(
    gradient: Tensor, x: Factor, weight: Factor, dtypes: Sequence[torch.dtype | None], stochastic: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a linear layer's input and weight as integer products.

    Args:
        gradient: (rows, out) floating point.
        x: The input.
        weight: The weight, whose zero is 0.
        dtypes: Of the two results; None for one that is not needed.
        stochastic: Round the gradient up or down at random.

    Returns:
        (rows, in) and (out, in).
    """
    by_rows, row_scale, by_columns, column_scale = _quantize_gradient(
        gradient, x.scale, weight.scale, dtypes[0] is not None, noise_seed(stochastic)
    )
    grad_x = grad_weight = None
    if dtypes[0] is not None and by_rows is not None and row_scale is not None:
        grad_x = rescale_rows(integer_matmul(by_rows, weight.integers.t()), row_scale, dtypes[0])
    if dtypes[1] is not None:
        grad_weight = _weight_gradient(by_columns, column_scale, x.integers, x.zero_point, dtypes[1])
    return grad_x, grad_weight


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, stochastic: bool
    ) -> Tensor:
        x_integers, x_scale = quantize_rows(x)
        weight_integers, weight_scale = quantize_rows(weight)
        ctx.save_for_backward(x_integers, x_scale, weight_integers, weight_scale)
        ctx.dtypes, ctx.stochastic = (x.dtype, weight.dtype, None if bias is None else bias.dtype), stochastic
        return _rescale(integer_matmul(x_integers, weight_integers), x_scale, weight_scale, bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        x_dtype, weight_dtype, bias_dtype = ctx.dtypes
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtypes = x_dtype if needs_x else None, weight_dtype if needs_weight else None
        factors = Factor(x, x_scale), Factor(weight, weight_scale)
        grad_x, grad_weight = linear_gradients(gradient, *factors, dtypes, ctx.stochastic)
        # Summed by torch alone: compiled kernels and ours would each add in an order of their own.
        grad_bias = gradient.sum(0, dtype=torch.float32).to(bias_dtype) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None


def output_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a layer answers `x`: autocast's where that is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def int8_linear(x: Tensor, weight: Tensor, bias: Tensor | None, stochastic_rounding: bool = False) -> Tensor:
    """`F.linear` with int8 products forward and backward.

    Args:
        x: (..., in) floating point, any strides, possibly empty.
        weight: (out, in).
        bias: (out,) or None.
        stochastic_rounding: Round gradients up or down at random, without bias, seeded from torch's generator.

    Returns:
        (..., out), in the dtype of `x`, or of autocast where that is on.
    """
    if x.numel() == 0:
        return F.linear(x, weight, bias)
    if not stochastic_rounding and takes_rows(x, weight) and (kernels := native(x, weight, bias)) is not None:
        trained: Tensor = kernels.int8_linear(x, weight, bias)
        return trained
    rows = x.reshape(-1, x.shape[-1])
    output: Tensor = _Int8Linear.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        rows, weight, bias, output_dtype(x), stochastic_rounding
    )
    return output.view(*x.shape[:-1], weight.shape[0])


class PtqLinear(nn.Linear):
    """`nn.Linear` that trains in int8 arithmetic where that pays."""

    plain_type = nn.Linear
    kernel: PtqKernel = "auto"
    stochastic_rounding: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        is_int8 = self.kernel == "int8"
        if self.kernel == "auto":
            is_int8 = integers_pay_in_linear(input, self.weight, own=not self.stochastic_rounding)
        if not is_int8:
            return super().forward(input)
        return int8_linear(input, self.weight, self.bias, self.stochastic_rounding)
