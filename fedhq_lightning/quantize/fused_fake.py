"""Fake quantization in one fused kernel: weights and activations on their grid forward, straight through backward."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fedhq_lightning.quantize.compilation import compiled
from fedhq_lightning.quantize.convolution import is_channels_last
from fedhq_lightning.quantize.grid import activation_integers, weight_integers
from fedhq_lightning.quantize.native.lanes import with_native
from fedhq_lightning.quantize.scheme import LayerScheme


def fake_quantize_weight(weight: Tensor, scheme: LayerScheme) -> Tensor:
    """A weight on its grid, with the identity as its gradient, also where a range clips.

    A clipped weight that got no gradient, as torchao's own quantizer has it, could never come back.

    Args:
        weight: (out, ...).
        scheme: The grid; a group size must divide the flattened input.

    Returns:
        As the weight.
    """
    return _straight_through(weight, scheme.group_size, _weight_kernel(scheme.weight_bits))


def fake_quantize_activation(x: Tensor, bits: int) -> Tensor:
    """An input on its grid, one range for each of the first dimension, with the identity as its gradient.

    Args:
        x: (rows, ...), not empty.
        bits: 2..8.

    Returns:
        As the input.
    """
    return _straight_through(x, None, _activation_kernel(bits))


def _straight_through(x: Tensor, group_size: int | None, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    rounded: Tensor = _StraightThrough.apply(x, group_size, kernel)  # type: ignore[no-untyped-call]  # untyped in torch
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group_size: int | None, kernel: Callable[[Tensor], Tensor]) -> Tensor:
        if group_size is None and x.dim() == 4 and is_channels_last(x):
            # The order within a row changes nothing, and this one keeps the memory format.
            image = x.permute(0, 2, 3, 1)
            return kernel(image.flatten(1)).view(image.shape).permute(0, 3, 1, 2)
        rows = x.flatten(1) if group_size is None else x.reshape(-1, group_size)
        return kernel(rows).view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


@cache
def _weight_kernel(bits: int) -> Callable[[Tensor], Tensor]:
    @compiled
    def fake_quantize(rows: Tensor) -> Tensor:
        integers, scale = weight_integers(rows.float(), bits)
        return (integers * scale).to(rows.dtype).contiguous()

    return with_native("round_weight", bits, fake_quantize)


@cache
def _activation_kernel(bits: int) -> Callable[[Tensor], Tensor]:
    @compiled
    def fake_quantize(rows: Tensor) -> Tensor:
        integers, scale, zero_point = activation_integers(rows.float(), bits, (1,))
        return ((integers - zero_point) * scale).to(rows.dtype).contiguous()

    return with_native("round_input", bits, fake_quantize)
