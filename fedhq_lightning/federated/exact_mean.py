"""Weighted mean of float32 tensors that does not depend on the order of the terms.

Floating-point addition rounds, so a sum changes with the order of its terms and with how they are spread over
processes. Here every float32 value is split into integer digits of 32 bits at fixed binary places, and digits are
summed as 64-bit integers, which is exact and therefore order-independent. Rounding happens once all terms are in: to
float64 for the sum and the quotient, then to float32. The sign of a zero is lost: -0.0 comes back as 0.0.

Source: the long accumulator of U. Kulisch (Computer Arithmetic and Validity, 2013), cut into float32's range.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import StateDict

_DIGIT_BITS = 32
_FIRST_UNIT = -2
"""Digit 0 counts multiples of 2**2, so that it holds values up to 2**33 in 32 bits."""
_MAX_DIGITS = 6
"""Digit 5 ends at 2**-158, below the smallest float32 number, 2**-149."""
MAX_VALUE = 2.0**33
MAX_TOTAL_WEIGHT = 2**29
"""Keeps digit sums within 62 bits, and one value times its weight exact in float64's 53."""


class ExactMean:
    """Accumulates weighted float32 states exactly.

    `limbs[key]` is int64 of shape (num_digits, *shape). Digits that no value needed are not held.
    """

    def __init__(self) -> None:
        self.limbs: dict[str, Tensor] = {}
        self.total_weight = 0

    def add(self, state: Mapping[str, Tensor], weight: int) -> None:
        """Add one state.

        Args:
            state: Float tensors, finite, magnitude below `MAX_VALUE`; the same keys and shapes at every call.
            weight: Number of examples, >= 1.

        Raises:
            ValueError: A value out of range, or the total weight passes `MAX_TOTAL_WEIGHT`.
        """
        if weight < 1 or self.total_weight + weight > MAX_TOTAL_WEIGHT:
            raise ValueError(f"weight {weight}: must be >= 1 and the total at most {MAX_TOTAL_WEIGHT}")
        for key, value in state.items():
            if not bool((value.detach().float().abs() < MAX_VALUE).all()):
                raise ValueError(f"{key}: not finite, or a magnitude of {MAX_VALUE:.0f} and more")
        self.total_weight += weight
        for key, value in state.items():  # one at a time: digits take several times a tensor's room
            digits, held = _digits(value).mul_(weight), self.limbs.get(key)
            self.limbs[key] = digits if held is None else _added(digits, held)

    def mean(self) -> StateDict:
        """Sum over weight, to within a few units of float64's last place, then rounded to float32.

        Raises:
            ValueError: Nothing was added, or processes that each kept to `MAX_TOTAL_WEIGHT` passed it together.
        """
        if self.total_weight > MAX_TOTAL_WEIGHT:
            raise ValueError(f"total weight {self.total_weight}: at most {MAX_TOTAL_WEIGHT}")
        if self.total_weight == 0:
            raise ValueError("the mean of no updates is not defined")
        return {key: self._mean_of(limbs) for key, limbs in self.limbs.items()}

    def reduced(self, processes: Processes) -> ExactMean:
        """Sum of the processes' accumulators, on every process; they may hold other keys, and numbers of digits."""
        if processes.count == 1:
            return self
        total = ExactMean()
        shapes = processes.gather({name: list(limbs.shape) for name, limbs in self.limbs.items()})
        total.total_weight = sum(processes.gather(self.total_weight))
        for name in dict.fromkeys(name for each in shapes for name in each):
            held = [each[name] for each in shapes if name in each]
            num_digits = max(shape[0] for shape in held)
            empty = torch.zeros(num_digits, *held[0][1:], dtype=torch.int64)
            limbs = padded(self.limbs[name], num_digits) if name in self.limbs else empty
            total.limbs[name] = processes.sum_integers(limbs)
        return total

    def _mean_of(self, limbs: Tensor) -> Tensor:
        negative = _carry(limbs)[0] < 0
        digits = _carry(torch.where(negative, -limbs, limbs))
        total = torch.zeros(limbs.shape[1:], dtype=torch.float64, device=limbs.device)
        for digit in range(limbs.shape[0] - 1, -1, -1):
            total += digits[digit].double() * _unit(digit)
        mean = total / self.total_weight
        return torch.where(negative, -mean, mean).float()


def _unit(digit: int) -> float:
    return 2.0 ** -(_FIRST_UNIT + digit * _DIGIT_BITS)


def _digits(value: Tensor) -> Tensor:
    """(*shape) float below `MAX_VALUE` -> (num_digits, *shape) int64 whose places add up to the value exactly."""
    rest = value.detach().float().double()
    digits = []
    for digit in range(_MAX_DIGITS):
        unit = _unit(digit)
        place = (rest / unit).trunc_()
        digits.append(place.to(torch.int64))
        rest -= place.mul_(unit)
        if not bool(rest.any()):
            break
    return torch.stack(digits)


def _carry(limbs: Tensor) -> Tensor:
    """The same sum with every digit but the first in 0..2**32-1; then the first one has the sign of the whole.

    Of a sum >= 0 no two digits cancel any more, so that adding them up in float64 keeps its relative precision.
    """
    digits = limbs.clone()
    for digit in range(limbs.shape[0] - 1, 0, -1):
        carried = digits[digit] >> _DIGIT_BITS
        digits[digit] -= carried << _DIGIT_BITS
        digits[digit - 1] += carried
    return digits


def _added(left: Tensor, right: Tensor) -> Tensor:
    """The sum, in the place of the one with more digits."""
    longer, shorter = (left, right) if left.shape[0] >= right.shape[0] else (right, left)
    longer[: shorter.shape[0]] += shorter
    return longer


def padded(limbs: Tensor, num_digits: int) -> Tensor:
    """The same sum with zero digits appended, (num_digits, *shape), so that processes can add theirs."""
    return _added(limbs.new_zeros(num_digits, *limbs.shape[1:]), limbs)
