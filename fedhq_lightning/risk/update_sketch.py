"""How far a client's update points away from the cohort's mean: a divergence that needs no labels.

Nothing leaves a client for it but its update, which the server has anyway. Updates are aggregated one at a time, so the
mean is known only when they are gone: what stays of each is a count sketch, a few numbers whose inner products are, on
average over the sketch's random signs, those of the updates. The error of a cosine is about 1 / sqrt(size).

Source: Charikar, Chen and Farach-Colton 2002, "Finding Frequent Items in Data Streams", for the sketch; Sattler et al.
2020, "Clustered Federated Learning", for cosines of updates as a measure of how clients' data differ.
"""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

SKETCH_SIZE = 1024


def direction_divergence(update: Tensor, mean: Tensor) -> float | None:
    """1 - cosine of two vectors.

    Args:
        update: (size,) on the CPU.
        mean: (size,) on the CPU.

    Returns:
        0 where they point the same way, 1 at a right angle, 2 where they are opposite; the same bits wherever the
        tensors lie in memory. None where one of them has no direction: zeros, or values that are not finite.

    Example:
        >>> direction_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
        1.0
    """
    x, y = update.double().tolist(), mean.double().tolist()
    if not all(map(math.isfinite, x)) or not all(map(math.isfinite, y)):
        return None
    # hypot does not overflow; fsum is exact, where a matrix library's sum would depend on the memory's alignment.
    x_norm, y_norm = math.hypot(*x), math.hypot(*y)
    if x_norm == 0.0 or y_norm == 0.0:
        return None
    cosine = math.fsum((a / x_norm) * (b / y_norm) for a, b in zip(x, y, strict=True))
    return 1.0 - min(1.0, max(-1.0, cosine))


class Sketcher:
    """Projects states onto a few numbers, the same way at every call and on every process.

    Every element goes, with a random sign, into one of `size` sums; 2 bytes an element are held to remember into which.

    Args:
        seed: Decides signs and places, with the tensors' names.
        size: Numbers of a sketch, 1 to 16,384.

    Example:
        >>> sketcher = Sketcher(seed=0, size=4)
        >>> state = {"weight": torch.tensor([[3.0, 4.0]])}
        >>> twice = sketcher.sketch({"weight": 2 * state["weight"]})
        >>> torch.equal(twice, 2 * sketcher.sketch(state))
        True
    """

    def __init__(self, seed: int, size: int = SKETCH_SIZE) -> None:
        if not 1 <= size <= 2**14:
            raise ValueError(f"a sketch of {size} numbers: must be 1 to {2**14}")
        self.seed = seed
        self.size = size
        self._places: dict[str, Tensor] = {}

    def sketch(self, state: Mapping[str, Tensor]) -> Tensor:
        """A state in `size` numbers.

        Args:
            state: Floating-point tensors on the CPU; a name stands for the same shape at every call.

        Returns:
            (size,) fp64, linear in the state but for rounding. The same bits on every process.
        """
        total = torch.zeros(2 * self.size, dtype=torch.float64)
        for name in sorted(state):
            value = state[name].detach().double().reshape(-1)
            places = self._places_of(name, value.numel()).to(torch.int64)
            total += torch.bincount(places, weights=value, minlength=2 * self.size)
        return total[: self.size] - total[self.size :]

    def _places_of(self, name: str, count: int) -> Tensor:
        """(count,) int16: the sum that each element goes into, plus `size` where its sign turns."""
        places = self._places.get(name)
        if places is None or places.numel() != count:
            digest = hashlib.blake2b(repr((self.seed, name)).encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            places = torch.randint(2 * self.size, (count,), dtype=torch.int16, generator=generator)
            self._places[name] = places
        return places
