"""Pixels as inputs of the deployed model's files: the data's normalization as the first operations of their graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError

PIXELS = "pixels"
"""What `trainer.export_inputs` may be beside None, and what a file that takes them says that it `takes`."""
_DTYPES = {"float32": torch.float32, "uint8": torch.uint8}
_MOST_DIFFERENCE = 1e-3
"""Between an input and what is made of its pixel anew; half a step of a pixel is several times as much."""


@dataclass(frozen=True)
class Pixels:
    """How pixels become inputs of a model: (pixel - mean) / std.

    Attributes:
        mean: One value a channel, or one for all, in the unit of the pixels.
        std: Likewise, > 0.
        dtype: Of pixels: uint8 for whole numbers from 0 to 255, else float32.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype = torch.float32

    @classmethod
    def told_by(cls, inputs: Mapping[str, Any] | None) -> Pixels:
        """From what `FederatedDataModule.model_inputs` tells.

        Raises:
            ConfigurationError: It tells no pixels, or not `mean` and `std` of the same number of channels, or a `dtype`
                that is none of these.
        """
        told = (inputs or {}).get(PIXELS)
        if told is None:
            raise ConfigurationError(
                "model_inputs of the data module tells no `pixels` with `mean` and `std`, by which they are normalized"
            )
        try:
            mean, std = (tuple(float(value) for value in told[name]) for name in ("mean", "std"))
            dtype = _DTYPES[told.get("dtype", "float32")]
        except (AttributeError, KeyError, TypeError, ValueError):
            mean, std, dtype = (), (), torch.float32
        is_usable = all(map(math.isfinite, mean + std)) and all(value > 0 for value in std)
        if not mean or len(mean) != len(std) or not is_usable:
            raise ConfigurationError(
                f"model_inputs tells pixels {told!r}; give `mean` and `std`, lists of one number a channel or of one "
                f"for all, std above 0, and as `dtype` one of {', '.join(_DTYPES)}"
            )
        return cls(mean, std, dtype)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Inputs of the model.

        Args:
            pixels: (batch, channels, ...) of `dtype`.
        """
        return _normalized(pixels, *self._constants(pixels.dim()))

    def of(self, inputs: Tensor) -> Tensor:
        """Pixels of inputs, the nearest that there are.

        Args:
            inputs: (batch, channels, ...) float32, on the CPU.
        """
        mean, std = self._constants(inputs.dim())
        pixels = inputs * std + mean
        return pixels.round_().clamp_(0, 255).to(self.dtype) if self.dtype == torch.uint8 else pixels

    def in_words(self) -> str:
        """What pixels are."""
        kind = "whole numbers, uint8" if self.dtype == torch.uint8 else "float32"
        return f"pixels as the data have them ({kind})"

    def check(self, args: tuple[Any, ...] | None) -> None:
        """Look at the arguments of a `forward`.

        Args:
            args: Positional ones, on the CPU; None where it was called with none.

        Raises:
            ConfigurationError: They are something else than one tensor of images with these channels, or its values are
                not those of pixels.
        """
        first = args[0] if args and len(args) == 1 else None
        if not isinstance(first, Tensor) or first.dtype != torch.float32 or first.dim() < 2:
            raise ConfigurationError("validation does not call forward with one float32 tensor of images, by position")
        if len(self.mean) not in (1, first.shape[1]):
            raise ConfigurationError(
                f"model_inputs tells a mean and std of {len(self.mean)} channels, and forward takes {first.shape[1]}"
            )
        apart = (self.normalized(self.of(first)) - first).abs().nan_to_num(0.0).max().item()
        if apart > _MOST_DIFFERENCE:
            raise ConfigurationError(
                "what forward takes in validation is not (pixel - mean) / std of the pixels that model_inputs tells, "
                f"but off by up to {apart:.2g}"
            )

    def put_before(self, module: nn.Module, dimensions: int) -> None:
        """Have a module take pixels where it takes inputs, in place; also where it is traced, and in its copies.

        Args:
            module: It takes one tensor.
            dimensions: How many that has.
        """
        module.register_forward_pre_hook(_Normalize(*self._constants(dimensions)))

    def _constants(self, dimensions: int) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (dimensions - 2))
        return torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)


class _Normalize:
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self._mean, self._std = mean, std

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return _normalized(args[0], self._mean, self._std)


def _normalized(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (pixels.to(torch.float32) - mean) / std
