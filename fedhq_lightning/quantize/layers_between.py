"""What lies between the quantized layers, by kernels of our own while a lane trains."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhq_lightning.quantize.native.lanes import native


class LaneMaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d` over 2 x 2 pixels, each beside the other: torch's bits, forward and backward."""

    plain_type = nn.MaxPool2d

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, height, width) to ([batch,] channels, height // 2, width // 2)."""
        kernels = native(input)
        if kernels is None or input.dim() != 4 or min(input.shape[2:]) < 2 or not input.numel():
            plain: Tensor = super().forward(input)
            return plain
        output: Tensor = kernels.max_pool(input)
        return output


class LaneGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` of images with channels last, with what follows it in the same pass.

    In training only: its bits are not torch's, so evaluation, which has to be the deployed model's, is torch's.
    """

    plain_type = nn.GroupNorm

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, ...) of the same shape."""
        kernels = self._kernels(input, None)
        normalized: Tensor = super().forward(input) if kernels is None else self._by(kernels, input, None, False)
        return normalized

    def rectified(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """ReLU of the normalized input.

        Args:
            input: (batch, channels, ...).
            shortcut: Added before the ReLU, of the input's shape.
        """
        kernels = self._kernels(input, shortcut)
        # Hooks are about this layer's output, which only exists where it is computed alone.
        hooks = (self._forward_pre_hooks, self._forward_hooks, self._backward_pre_hooks, self._backward_hooks)
        if kernels is None or any(hooks):
            normalized = self(input)
            return functional.relu(normalized if shortcut is None else normalized + shortcut)
        return self._by(kernels, input, shortcut, True)

    def _kernels(self, input: Tensor, shortcut: Tensor | None) -> Any | None:
        kernels = native(input, self.weight, self.bias, shortcut) if self.training else None
        # Where both orders are one, torch takes images for channels first, and its own kernel is as good.
        if kernels is None or input.dim() != 4 or input.is_contiguous() or not input.numel():
            return None
        if not input.is_contiguous(memory_format=torch.channels_last):
            return None
        return kernels if shortcut is None or shortcut.shape == input.shape else None

    def _by(self, kernels: Any, input: Tensor, shortcut: Tensor | None, is_rectified: bool) -> Tensor:
        given = (input, self.weight, self.bias, shortcut)
        output: Tensor = kernels.group_norm(*given, self.num_groups, self.eps, is_rectified)
        return output


def prepare_between(module: nn.Module) -> None:
    """Give the layers between those of a lane its kernels, in place; `restore` undoes it."""
    for layer in module.modules():
        if type(layer) is nn.MaxPool2d and _has_plain_windows(layer):
            layer.__class__ = LaneMaxPool2d
        elif type(layer) is nn.GroupNorm and layer.affine:
            layer.__class__ = LaneGroupNorm


def _has_plain_windows(pool: nn.MaxPool2d) -> bool:
    windows = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    is_plain = all(each in (wanted, (wanted, wanted)) for each, wanted in zip(windows, (2, 2, 0, 1), strict=True))
    return is_plain and not pool.ceil_mode and not pool.return_indices
