"""Training in int8 arithmetic: the PTQ lane's layers.

Output, input gradient and weight gradient of a linear layer are integer products. The operands are quantized anew
each time, symmetrically, with one scale per row of the left and per column of the right factor. Master weights, biases
and everything between layers stay in floating point. `int8_convolution` does the same for convolutions.

Source: the scaling of torchao 0.18, `prototype/quantized_training/int8_mixed_precision.py`; unlike it, this works under
CPU autocast, on strided and empty inputs, and with gradients below 1e-10.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedhq_lightning.quantize.integer_matmul import integer_matmul

_HIGHEST = 127
_SMALLEST_SCALE = torch.finfo(torch.float32).smallest_normal


def quantize_symmetric(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Round to 255 symmetric steps.

    Args:
        x: Floating point, any shape.
        dims: Dimensions that share a scale.

    Returns:
        int8 as `x`, and fp32 scales with `dims` kept as size 1. Values that are not finite show in their scale.
    """
    x = x.float()
    smallest, largest = x.amin(dim=dims, keepdim=True), x.amax(dim=dims, keepdim=True)
    scale = (torch.maximum(-smallest, largest) / _HIGHEST).clamp(min=_SMALLEST_SCALE)
    return (x / scale).round_().to(torch.int8), scale


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` with both factors quantized per row.

    Args:
        a: (rows, inner) floating point.
        b: (columns, inner) floating point.

    Returns:
        fp32 (rows, columns); zeros where `inner` is 0.
    """
    if a.shape[1] == 0 or a.shape[0] == 0:
        return a.new_zeros(a.shape[0], b.shape[0], dtype=torch.float32)
    a_integers, a_scale = quantize_symmetric(a, (1,))
    b_integers, b_scale = quantize_symmetric(b, (1,))
    # One scale after the other: their own product could underflow where the result does not.
    return integer_matmul(a_integers, b_integers) * b_scale.t() * a_scale


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        output = int8_product(x, weight)
        return (output if bias is None else output + bias).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = int8_product(grad_output, weight.t()).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = int8_product(grad_output.t(), x.t()).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.float().sum(0).to(ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None


def output_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a layer answers `x`: autocast's where that is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def int8_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with int8 products forward and backward.

    Args:
        x: (..., in) floating point, any strides, possibly empty.
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (..., out), in the dtype of `x`, or of autocast where that is on.
    """
    rows = x.reshape(-1, x.shape[-1])
    output: Tensor = _Int8Linear.apply(rows, weight, bias, output_dtype(x))  # type: ignore[no-untyped-call]  # untyped in torch
    return output.view(*x.shape[:-1], weight.shape[0])


class PtqLinear(nn.Linear):
    """`nn.Linear` that trains in int8 arithmetic."""

    plain_type = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return int8_linear(input, self.weight, self.bias)
