"""What the convolution layers of every lane share: padding and patches."""

from collections.abc import Sequence
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d


def padding_amounts(conv: Convolution) -> list[int]:
    """A layer's padding as `F.pad` takes it: last dimension first, before and after."""
    amounts: list[int] = []
    for dimension in reversed(range(len(conv.kernel_size))):
        if conv.padding == "same":
            total = conv.dilation[dimension] * (conv.kernel_size[dimension] - 1)
            amounts += [total // 2, total - total // 2]
        elif conv.padding == "valid":
            amounts += [0, 0]
        else:
            amounts += [int(conv.padding[dimension])] * 2
    return amounts


def output_positions(conv: Convolution, x: Tensor) -> int:
    """Output positions of one sample of (batch, channels, ...)."""
    amounts, positions = padding_amounts(conv), 1
    for i, kernel in enumerate(conv.kernel_size):
        padded = x.shape[2 + i] + sum(amounts[2 * (len(conv.kernel_size) - 1 - i) :][:2])
        positions *= max(0, (padded - conv.dilation[i] * (kernel - 1) - 1) // conv.stride[i] + 1)
    return positions


def is_channels_last(x: Tensor) -> bool:
    """Whether an image is channels last in memory, and not both ways."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def pad(x: Tensor, amounts: Sequence[int], padding_mode: str) -> Tensor:
    """Pad (batch, channels, ...) as a layer with this `padding_mode` does."""
    if not any(amounts):
        return x
    return F.pad(x, list(amounts), mode="constant" if padding_mode == "zeros" else padding_mode)


def patches(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Every window that a convolution without further padding sees.

    Args:
        x: (batch, channels, length) or (batch, channels, height, width), any dtype, padded already.
        kernel_size: As in the layer.
        stride: As in the layer.
        dilation: As in the layer.

    Returns:
        (batch, *output size, kernel elements * channels), the last dimension in the order of `in_patch_order`.
    """
    num_dims = len(kernel_size)
    # Channels last, so that a window is a few long runs of memory: an order of magnitude faster to copy.
    x = x.movedim(1, -1).contiguous()
    for i in range(num_dims):
        x = x.unfold(1 + i, dilation[i] * (kernel_size[i] - 1) + 1, stride[i])
    # Dilation skips elements inside the window, which unfold itself cannot.
    inside: tuple[EllipsisType | slice, ...] = (..., *(slice(None, None, step) for step in dilation))
    return x[inside].movedim(1 + num_dims, -1).flatten(start_dim=1 + num_dims)


def in_patch_order(weight: Tensor) -> Tensor:
    """A weight (out, in, *kernel) as (out, kernel elements * in), the order of `patches`."""
    return weight.movedim(1, -1).flatten(1)
