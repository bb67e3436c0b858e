"""Secrets of 32 bytes in shares, of which any `threshold` give the secret back and fewer tell nothing of it.

Source: A. Shamir 1979, "How to Share a Secret", over the integers modulo the first prime above 2**256.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from fedhq_lightning.federated.secure.messages import NUM_SHARE_BYTES

Randomness: TypeAlias = Callable[[int], bytes]
"""Gives that many random bytes; `os.urandom` is one."""

PRIME = 2**256 + 297
_NUM_DRAWN_BYTES = 48
"""For one coefficient: modulo the prime, 384 random bits are uniform to within 2**-127."""


def split(secret: bytes, threshold: int, points: Sequence[int], randomness: Randomness) -> dict[int, bytes]:
    """Shares of a secret: values of a random polynomial of degree `threshold - 1` that has the secret at 0.

    Args:
        secret: 32 bytes.
        threshold: How many shares give it back, 1 or more.
        points: Where the polynomial is taken, distinct and above 0: one for each holder.
        randomness: Draws the coefficients.

    Returns:
        Point to share, `NUM_SHARE_BYTES` each.
    """
    drawn = (int.from_bytes(randomness(_NUM_DRAWN_BYTES), "little") % PRIME for _ in range(threshold - 1))
    coefficients = [*drawn, int.from_bytes(secret, "little")]
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % PRIME
        shares[point] = value.to_bytes(NUM_SHARE_BYTES, "little")
    return shares


class Recovery:
    """Gives back secrets whose shares lie at the same points; what depends on the points alone is computed once.

    Args:
        points: Of the shares, distinct, as many as the threshold.
    """

    def __init__(self, points: Sequence[int]) -> None:
        self._factors = {}
        for point in points:
            above = below = 1
            for other in points:
                if other != point:
                    above = above * other % PRIME
                    below = below * (other - point) % PRIME
            self._factors[point] = above * pow(below, -1, PRIME) % PRIME

    def secret(self, shares: Mapping[int, bytes]) -> bytes:
        """The polynomial's value at 0.

        Args:
            shares: Of one secret, by point; those at other points are left aside.

        Raises:
            ValueError: The shares are not those of one secret of 32 bytes, as far as that can be seen.
        """
        value = sum(factor * int.from_bytes(shares[point], "little") for point, factor in self._factors.items())
        try:
            return (value % PRIME).to_bytes(32, "little")
        except OverflowError:
            raise ValueError("the shares are not those of one secret") from None
