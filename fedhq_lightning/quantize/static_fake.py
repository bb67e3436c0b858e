"""Fake quantization on a static activation range, with the gradients by which the range is learned."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedhq_lightning.quantize.activation_ranges import StaticGrid, static_integers
from fedhq_lightning.quantize.compilation import compiled
from fedhq_lightning.quantize.convolution import is_channels_last
from fedhq_lightning.quantize.grid import integer_range


def fake_quantize_static(x: Tensor, activation_range: Tensor, bits: int) -> Tensor:
    """An input on the grid of a static range; gradients as in `static_gradients`.

    Args:
        x: (rows, ...), not empty.
        activation_range: fp32 (2,), see `activation_ranges`.
        bits: 2..8.

    Returns:
        As the input.
    """
    rounded: Tensor = _StaticFake.apply(x, activation_range, bits)  # type: ignore[no-untyped-call]  # untyped in torch
    return rounded


def static_gradients(
    x: Tensor, gradient: Tensor, activation_range: Tensor, bits: int, needs_range: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of rounding an input to the grid of a static range, rounding itself taken for the identity.

    The input's passes straight through inside the range and is zero beyond. Each end of the range gets the gradients of
    the values that were clipped to it (PACT), and both share what a wider scale does to the rounding errors inside
    (LSQ).

    Args:
        x: The input, (rows, ...).
        gradient: Of what it was rounded to; shape as the input.
        activation_range: fp32 (2,).
        bits: 2..8.
        needs_range: Whether the range's gradient is wanted.

    Returns:
        Of the input, in the gradient's dtype; of the range, fp32 (2,), or None.

    Source: Choi et al. 2018 (PACT), Esser et al. 2020 (LSQ), Bhalgat et al. 2020 (LSQ+), by the ends of the range
    instead of scale and offset. The gradient scale of LSQ is left out: `RangeLearner` takes gradients of any size.
    """
    lowest, highest = integer_range(bits)
    grid = StaticGrid.of(activation_range, bits)
    # What rounding the zero point adds: it moves the whole grid by less than a step.
    offset = (lowest - grid.zero_point) - activation_range.detach()[0].clamp(max=0) / grid.scale
    kernel = _gradient_kernel(bits)
    ranges = grid.scale.view(1, 1), grid.zero_point.view(1, 1), offset.view(1, 1)
    grad_x, by_scale, clipped = (_alike(part, x) for part in kernel(*_as_rows(x, gradient), *ranges))
    if not needs_range:
        return grad_x.to(gradient.dtype), None
    # Summed outside of the kernel: a compiled sum's order would depend on the sizes that it was first called with.
    grad_scale = by_scale.sum() / (highest - lowest)
    return grad_x.to(gradient.dtype), torch.stack([clipped.sum() - grad_scale, grad_scale])


class _StaticFake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation_range: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x, activation_range)
        ctx.bits = bits
        (rows,) = _as_rows(x)
        return _alike(_kernel(bits)(rows, *StaticGrid.of(activation_range, bits).for_dims(2)), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, activation_range = ctx.saved_tensors
        return *static_gradients(x, gradient, activation_range, ctx.bits, ctx.needs_input_grad[1]), None


def _as_rows(x: Tensor, *others: Tensor) -> list[Tensor]:
    """Tensors of one shape as matrices, all in the memory order of the first."""
    if _is_image(x):
        return [each.permute(0, 2, 3, 1).flatten(1) for each in (x, *others)]
    return [each.flatten(1) for each in (x, *others)]


def _alike(rows: Tensor, x: Tensor) -> Tensor:
    if _is_image(x):
        return rows.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    return rows.view(x.shape)


def _is_image(x: Tensor) -> bool:
    return x.dim() == 4 and is_channels_last(x)


@cache
def _kernel(bits: int) -> Any:
    @compiled
    def fake_quantize(rows: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        integers = static_integers(rows.float(), scale, zero_point, bits)
        return ((integers - zero_point) * scale).to(rows.dtype).contiguous()

    return fake_quantize


@cache
def _gradient_kernel(bits: int) -> Any:
    lowest, highest = integer_range(bits)

    @compiled
    def split_gradient(
        rows: Tensor, gradient: Tensor, scale: Tensor, zero_point: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of values inside the range; shares of the scale's; of values beyond it. fp32, as the rows."""
        gradient = gradient.float()
        steps = rows.float() * (1.0 / scale)
        rounded = steps.round()
        above, below = rounded + zero_point > highest, rounded + zero_point < lowest
        is_clipped = above | below
        growth = torch.where(is_clipped, offset + above * float(highest - lowest), rounded - steps)
        zero = torch.zeros_like(gradient)
        inside, clipped = torch.where(is_clipped, zero, gradient), torch.where(is_clipped, gradient, zero)
        return inside.contiguous(), (gradient * growth).contiguous(), clipped.contiguous()

    return split_gradient
