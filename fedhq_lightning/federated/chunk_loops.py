"""Passes over a chunk of values that an exact sum takes: by kernels of our own or by numpy and torch, the same bits."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhq_lightning.quantize.native.lanes import native

CHUNK = 2**17
"""Elements: a megabyte in float64. Smaller ones cost more calls, larger ones leave the cache."""
SHIFT = 1.5 * 2.0**52
"""Integers in one addition: of a product of fewer than 2^51 units and this, the low bits are the product in units."""
SHIFT_BITS = int(np.float64(SHIFT).view(np.int64))

Magnitudes: TypeAlias = tuple[int, int]
"""Bits of the largest absolute value, and of the smallest one that is not zero; as integers they order as values do."""


class Scratch:
    """Room to work in that stays in the cache, for one thread."""

    def __init__(self) -> None:
        self.values = torch.empty(CHUNK)
        self.places = torch.empty(CHUNK, dtype=torch.int32)
        self._shift = torch.tensor(SHIFT, dtype=torch.float64)
        self._floats = torch.empty(CHUNK, dtype=torch.float64)
        self._bits = np.empty(CHUNK, np.int32)

    def magnitudes(self, values: Tensor) -> Magnitudes:
        """Largest and smallest magnitude of a chunk; zeros where all are zero.

        Args:
            values: (n,) contiguous float32 on the CPU, n from 1 to `CHUNK`.
        """
        if (kernels := native(values)) is not None:
            largest, smallest = kernels.magnitudes(values)
            return int(largest), int(smallest)
        bits = self._absolute_bits(values)
        np.subtract(bits, 1, out=bits)  # a zero becomes -1: the smallest when signed, the largest when not
        largest = int(bits.max()) + 1
        return (largest, int(bits.view(np.uint32).min()) + 1) if largest else (0, 0)

    def add(
        self, values: Tensor, factor: float, lowest: int, highest: int, limit: int, units: NDArray[np.int64]
    ) -> tuple[int, NDArray[np.int32]]:
        """Add values times `factor` to units, those that fit; every element of units gets `SHIFT_BITS` with it.

        Args:
            values: As for `magnitudes`.
            factor: A small integer times a power of two.
            lowest: Bits of the smallest magnitude that fits. Zeros fit too.
            highest: Of the smallest one that is too large to fit.
            limit: Of the smallest one that is left out altogether, `highest` at least.
            units: (n,) int64.

        Returns:
            Bits of the largest magnitude, and the places of those that do not fit and are below the limit.
        """
        if (kernels := native(values)) is not None:
            largest, count = kernels.add_values(
                values, factor, lowest, highest, limit, torch.from_numpy(units), self.places
            )
            return int(largest), self.places[:count].numpy()
        places = np.empty(0, np.int32)
        largest, smallest = self.magnitudes(values)
        if largest and (smallest < lowest or largest >= highest):
            bits = self._absolute_bits(values)
            missing = (bits < lowest) & (bits > 0) | (bits >= highest)
            places = np.flatnonzero(missing & (bits < limit)).astype(np.int32)
            values = values.masked_fill(torch.from_numpy(missing), 0.0)
        floats = self._floats[: len(values)]
        floats.copy_(values)
        torch.add(self._shift, floats, alpha=factor, out=floats)
        np.add(units, floats.numpy().view(np.int64), out=units)
        return largest, places

    def _absolute_bits(self, values: Tensor) -> NDArray[np.int32]:
        return np.bitwise_and(values.numpy().view(np.int32), 0x7FFFFFFF, out=self._bits[: len(values)])
