"""Exact sums of float32 values in 64-bit integers, a chunk that stays in the processor's cache at a time.

The values of a chunk mostly lie within a few powers of two of each other, so that one int64 an element, which counts
multiples of one power of two, holds their sum exactly. What it cannot hold, because a value has bits below that unit or
is too large for it, is held apart: few values as Python integers, many as 32-bit digits at fixed places. Nothing is
ever rounded: where a value is held depends on the order of the updates, their sum does not.

Source: for the digits, the long accumulator of U. Kulisch (Computer Arithmetic and Validity, 2013), cut into float32's
range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhq_lightning.federated.chunk_loops import SHIFT_BITS, Magnitudes, Scratch
from fedhq_lightning.quantize.native.lanes import native

MAX_VALUE = 2.0**33
_SLICE = 2**14
"""Elements of a mean that are computed at a time: some ten arrays of them stay in the cache."""
NUM_DIGITS = 6
"""Digit j counts multiples of `2**(2 - 32 * j)`: digit 0 holds sums up to 2**64, digit 5 ends at 2**-158."""
_FIRST_UNIT = 2
_DIGIT_BITS = 32
_LOWEST = -149
"""Every float32 number is a multiple of 2**-149."""
_SIGNIFICAND_BITS = 24
_ADDEND_BITS = 51
"""An addend is below 2**51 units, so that float64 can hold it beside `chunk_loops.SHIFT`."""
_SPARE_BITS = 2
"""Later updates may be that many bits larger than the first, and fit."""
_WEIGHT_BITS = 15
"""A larger weight is added in two parts, or its product with one float32 number would not fit an addend."""
_FEW = 1 / 64
"""Share of a chunk up to which Python integers cost less than a pass for every digit."""
_LIMIT_BITS = int(np.float32(MAX_VALUE).view(np.int32))

Integers: TypeAlias = NDArray[np.int64]


class ChunkSum:
    """Sum of one chunk's values over all updates.

    Args:
        size: Values of the chunk, 1 to `CHUNK`.

    Attributes:
        size: As given.
        apart: Of few values, place in the chunk to the sum that is held apart, in multiples of 2**-149.
    """

    def __init__(self, size: int) -> None:
        self.apart: dict[int, int] = {}
        self.size = size
        self._exponent: int | None = None
        self._units: Integers = np.empty(0, np.int64)
        self._bound = 0
        self._num_shifts = 0
        self._digits: Integers | None = None

    def add(self, values: Tensor, weight: int, scratch: Scratch) -> bool:
        """Add one update's values, times its weight.

        Args:
            values: (size,) as for `Scratch.magnitudes`.
            weight: 1 to 2**29; that of all updates together keeps to 2**29 too.
            scratch: To work in.

        Returns:
            Whether all magnitudes are below `MAX_VALUE`; where not, nothing was added.
        """
        is_heavy = weight.bit_length() > _WEIGHT_BITS
        if self._exponent is None or is_heavy:
            found = scratch.magnitudes(values)
            if not found[0] or found[0] >= _LIMIT_BITS:
                return not found[0]
            if is_heavy:
                if low := weight % 2**_WEIGHT_BITS:
                    self._add(values, low, found, scratch)
                values = values * 2.0**_WEIGHT_BITS
                return self._add(values, weight >> _WEIGHT_BITS, scratch.magnitudes(values), scratch, 2**31 - 1)
            return self._add(values, weight, found, scratch)
        return self._add(values, weight, None, scratch)

    @classmethod
    def of_units(cls, units: Integers, exponent: int, apart: dict[int, int]) -> ChunkSum:
        """The sum that is `units` multiples of `2**exponent`, and of few values what is `apart`."""
        one = cls(len(units))
        one._exponent, one._units, one.apart = exponent, units, apart
        return one

    def span(self) -> list[int] | None:
        """What its units are multiples of, as a power of two, and below which magnitude they are.

        Empty where nothing was added; None where digits hold a part of the sum.
        """
        if self._digits is not None:
            return None
        return [] if self._exponent is None else [self._exponent, self._bound]

    def write_units(self, exponent: int, units: Integers) -> None:
        """Write the sum, but for what is `apart`, as multiples of `2**exponent`, of which `span` is one."""
        if self._exponent is None:
            units[:] = 0
            return
        np.subtract(self._units, np.int64(self._shifts()), out=units)
        units <<= self._exponent - exponent

    def add_to(self, digits: Integers) -> None:
        """Add the sum to digits, but for what is `apart`.

        Args:
            digits: (NUM_DIGITS, size).
        """
        for start in range(0, 0 if self._exponent is None else self.size, _SLICE):
            part = slice(start, start + _SLICE)
            self._spread_to(digits[:, part], part)
        if self._digits is not None:
            digits += self._digits

    def places(self) -> range:
        """The digits that `add_to` changes."""
        if self._digits is not None:
            return range(NUM_DIGITS)
        if self._exponent is None:
            return range(0)
        last = _digit_of(self._exponent)
        return range(max(last - 2, 0), last + 1)

    def mean(self, total_weight: int, scratch: Scratch) -> Tensor:
        """The sum over the weight, float32 (size,) until the next call, with the bits of `mean_of_digits`."""
        mean = scratch.values[: self.size]
        kernels, digit = native(mean), 0 if self._exponent is None else _digit_of(self._exponent)
        if kernels is None or self._exponent is None or self._digits is not None or digit < 2:
            digits = np.zeros((NUM_DIGITS, self.size), np.int64)
            self.add_to(digits)
            add_apart(self.apart, digits)
            return mean.copy_(torch.from_numpy(mean_of_digits(digits, total_weight)))
        unit = _unit(digit)
        kernels.mean_of_units(
            torch.from_numpy(self._units), self._shifts(), self._exponent - unit, unit, float(total_weight), mean
        )
        if self.apart:
            places = list(self.apart)
            digits = np.zeros((NUM_DIGITS, len(places)), np.int64)
            self._spread_to(digits, places)
            add_apart(dict(enumerate(self.apart.values())), digits)
            mean[places] = torch.from_numpy(mean_of_digits(digits, total_weight)).float()
        return mean

    def _add(
        self, values: Tensor, weight: int, found: Magnitudes | None, scratch: Scratch, limit: int = _LIMIT_BITS
    ) -> bool:
        if self._exponent is None:
            assert found is not None
            # The first products are below 2**top.
            top = _top(found[0]) + weight.bit_length()
            self._exponent = max(top + _SPARE_BITS - _ADDEND_BITS, _LOWEST)
            # numpy's memory lies without gaps, so that the mean finds room where sums were.
            self._units = np.zeros(self.size, np.int64)
        exponent, factor = self._exponent, weight * 2.0**-self._exponent
        # What fits: bits that end at the unit or above it, and a product below 2**51 units.
        lowest = _bits_of(exponent + _SIGNIFICAND_BITS - 1) if exponent > _LOWEST else 1
        highest = min(_bits_of(exponent + _ADDEND_BITS - weight.bit_length()), limit)
        if self._bound > 2**62 - 2**_ADDEND_BITS:
            self._settle()
        largest, places = scratch.add(values, factor, lowest, highest, limit, self._units)
        self._bound += 2 ** min(max(_top(largest) + weight.bit_length() - exponent, 0), _ADDEND_BITS)
        self._num_shifts += 1
        if largest >= limit:
            scratch.add(-values, factor, lowest, highest, limit, self._units)  # takes back, exactly, what was added
            self._num_shifts += 1
            return False
        if len(places):
            self._hold_apart(values.numpy()[places].astype(np.float64), weight, places)
        return True

    def _hold_apart(self, values: NDArray[np.float64], weight: int, places: NDArray[np.int32]) -> None:
        """Add what does not fit."""
        if len(places) <= self.size * _FEW:
            for place, value in zip(places.tolist(), values.tolist(), strict=True):
                self.apart[place] = self.apart.get(place, 0) + int(value * 2.0**-_LOWEST) * weight
        else:
            self._add_digits(values * weight, places)
        if len(self.apart) > self.size / 8:  # an entry takes some hundred bytes
            add_apart(self.apart, self._own_digits())
            self.apart = {}

    def _add_digits(self, rest: NDArray[np.float64], places: NDArray[np.int32]) -> None:
        digits = self._own_digits()
        for digit in range(NUM_DIGITS):
            whole = np.trunc(rest * 2.0 ** -_unit(digit))
            digits[digit, places] += whole.astype(np.int64)
            rest -= whole * 2.0 ** _unit(digit)
            if not rest.any():
                break

    def _own_digits(self) -> Integers:
        if self._digits is None:
            self._digits = np.zeros((NUM_DIGITS, self.size), np.int64)
        return self._digits

    def _shifts(self) -> int:
        """What came into every unit with the products, modulo 2**64, as these were added."""
        return int(np.array(self._num_shifts * SHIFT_BITS % 2**64, np.uint64).astype(np.int64))

    def _spread_to(self, digits: Integers, part: slice | list[int]) -> None:
        """Add the units of some places to their digits."""
        assert self._exponent is not None
        _spread(self._units[part] - np.int64(self._shifts()), self._exponent, digits)

    def _settle(self) -> None:
        """Make room: what was summed becomes digits."""
        own = self._own_digits()
        self._spread_to(own, slice(None))
        self._units[:] = 0
        self._num_shifts = self._bound = 0


def common_exponent(spans: Sequence[list[int] | None]) -> int | None:
    """In which units sums can be added up in one int64 an element; None where they need digits.

    Args:
        spans: Of every sum, see `ChunkSum.span`.
    """
    if None in spans:
        return None
    held = [span for span in spans if span]
    exponent = min((each for each, _ in held), default=0)  # all zeros fit any
    return exponent if sum(bound << (each - exponent) for each, bound in held) < 2**62 else None


def add_apart(apart: dict[int, int], digits: Integers) -> None:
    """Add to digits what is held apart.

    Args:
        apart: As `ChunkSum.apart`.
        digits: (NUM_DIGITS, size).
    """
    places = list(apart)
    rests = [total << (_LOWEST - _unit(NUM_DIGITS - 1)) for total in apart.values()]
    for digit in range(NUM_DIGITS - 1, 0, -1):
        digits[digit, places] += np.array([rest & (2**_DIGIT_BITS - 1) for rest in rests], np.int64)
        rests = [rest >> _DIGIT_BITS for rest in rests]
    digits[0, places] += np.array(rests, np.int64)


def mean_of_digits(digits: Integers, total_weight: int) -> NDArray[np.float64]:
    """Sum over weight, to within a few units of float64's last place; it depends on the sum alone, not on its digits.

    Args:
        digits: (NUM_DIGITS, n); overwritten.
        total_weight: 1 to 2**29.
    """
    count = NUM_DIGITS
    while count > 1 and not digits[count - 1].any():
        count -= 1
    sums = [_rounded(digits[:count, start : start + _SLICE]) for start in range(0, digits.shape[1], _SLICE)]
    return np.concatenate(sums) / total_weight


def _rounded(digits: Integers) -> NDArray[np.float64]:
    _carry(digits)
    signs = digits[0] >> 63  # -1 or 0; of an integer i, (i ^ -1) + 1 is -i
    digits ^= signs
    digits -= signs
    _carry(digits)
    total = np.zeros(digits.shape[1])
    for digit in range(len(digits) - 1, -1, -1):
        total += digits[digit] * 2.0 ** _unit(digit)
    return np.negative(total, out=total, where=signs.astype(bool))


def _carry(digits: Integers) -> None:
    """Bring every digit but the first into 0..2**32-1; then the first one has the sign of the whole.

    Of a sum >= 0 no two digits cancel any more, so that adding them up in float64 keeps its relative precision.
    """
    for digit in range(len(digits) - 1, 0, -1):
        carried = digits[digit] >> _DIGIT_BITS
        digits[digit] -= carried << _DIGIT_BITS
        digits[digit - 1] += carried


def _spread(integers: Integers, exponent: int, digits: Integers) -> None:
    """Add multiples of `2**exponent` to digits."""
    digit = _digit_of(exponent)
    shift = exponent - _unit(digit)
    if digit == 0:
        digits[0] += integers << shift
        return
    below = _DIGIT_BITS - shift
    digits[digit] += (integers & (2**below - 1)) << shift
    rest = integers >> below
    if digit > 1:
        digits[digit - 1] += rest & (2**_DIGIT_BITS - 1)
        rest >>= _DIGIT_BITS
    digits[max(digit - 2, 0)] += rest


def _digit_of(exponent: int) -> int:
    """The first digit whose unit divides `2**exponent`."""
    return max(0, -((exponent - _FIRST_UNIT) // _DIGIT_BITS))


def _unit(digit: int) -> int:
    return _FIRST_UNIT - _DIGIT_BITS * digit


def _top(bits: int) -> int:
    """Exponent of a power of two above a magnitude."""
    return (bits >> 23) - 126


def _bits_of(exponent: int) -> int:
    """Bits of `2.0**exponent` in float32."""
    return (exponent + 127) << 23 if exponent >= -126 else 1 << (exponent - _LOWEST)
