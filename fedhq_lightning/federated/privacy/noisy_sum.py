"""The server's sum under central privacy: updates clipped, added up exactly, and noise added once.

Updates are added as whole multiples of a power of two some 2**-32 of the clipping norm. They are rounded towards zero
for that, which makes no norm larger, so that two cohorts that differ by one client have sums that differ by no more
than the clipping norm, exactly, whatever grid the updates came on. The noise is rounded to the same multiples: of a sum
of whole numbers that is the same as rounding the sum with the noise, so nothing shows in the last bits that the
Gaussian mechanism would not show (Mironov 2012, "On Significance of the Least Significant Bits For Differential
Privacy", is about sums that are not rounded).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedhq_lightning.federated.payload import decoded
from fedhq_lightning.quantize.packed_weight import PackedWeight
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.seeds import derive_seed
from fedhq_lightning.types import StateDict

_UNITS = 32
"""Bits: a clipped value is below 2**32 units, so that a million of them, and noise, fit an int64."""
_ROUNDING = 1 - 2.0**-40
"""Makes up for what float64 rounds while values are scaled."""


class NoisySum:
    """Adds up one round's updates, for `Server.accumulator`.

    Args:
        shapes: Of every tensor that travels, by name, in the order of the updates.
        clip_norm: What an update's norm over all tensors is cut down to.
        noise_multiplier: Standard deviation of the noise on the sum, in multiples of it.
        expected: Updates of a round on average, which the sum is divided by.
        seed: The run's.
        round_number: From 1.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        clip_norm: float,
        noise_multiplier: float,
        expected: int,
        seed: int,
        round_number: int,
    ) -> None:
        self._shapes = shapes
        self._clip_norm = clip_norm
        self._deviation = noise_multiplier * clip_norm
        self._expected = expected
        self._seed = derive_seed(seed, "noise on the sum", round_number)
        self._unit = 2.0 ** (math.frexp(clip_norm)[1] - _UNITS)
        self._sum: Tensor | None = None

    def add(self, state: Mapping[str, Tensor | PackedWeight], weight: int) -> None:
        """Add one update, clipped. Its weight is 1, whatever it claims.

        Args:
            state: Differences to what the client received; finite.
            weight: Left aside.

        Raises:
            ValueError: Other names or shapes.
        """
        if {name: list(value.shape) for name, value in state.items()} != self._lists():
            raise ValueError("names or shapes unlike those of the model")
        values = decoded(state)
        update = torch.cat([values[name].detach().to("cpu", torch.float64).reshape(-1) for name in self._shapes])
        norm = float(torch.linalg.vector_norm(update))
        factor = min(1.0, self._clip_norm / norm) if norm else 1.0
        whole = update.mul_(factor * _ROUNDING / self._unit).trunc_().to(torch.int64)
        self._sum = whole if self._sum is None else self._sum.add_(whole)

    def mean(self, processes: Processes) -> tuple[StateDict, int]:
        """The noisy sum over the expected number of updates, in float32, and that number; also of no update at all."""
        total = self._sum if self._sum is not None else torch.zeros(self._size(), dtype=torch.int64)
        self._sum = None
        noisy = processes.sum_integers(total) + self._noise()
        values = noisy.double().mul_(self._unit / self._expected).float()
        parts = torch.split(values, [math.prod(shape) for shape in self._shapes.values()])
        return {
            name: part.reshape(tuple(shape)) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }, self._expected

    def _noise(self) -> Tensor:
        """In units, int64; the same on every process."""
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.randn(self._size(), dtype=torch.float64, generator=generator)
        return drawn.mul_(self._deviation / self._unit).round_().to(torch.int64)

    def _size(self) -> int:
        return sum(math.prod(shape) for shape in self._shapes.values())

    def _lists(self) -> dict[str, list[int]]:
        return {name: list(shape) for name, shape in self._shapes.items()}
