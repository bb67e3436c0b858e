"""Shares: any threshold of them give the secret back, and fewer allow every secret alike."""

import itertools
import random

import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sympy import isprime

from fedhq_lightning.federated.secure.messages import NUM_SHARE_BYTES
from fedhq_lightning.federated.secure.shamir import PRIME, Recovery, split

SECRETS = [bytes(32), bytes([255] * 32), bytes(range(32))]


def test_the_modulus_is_the_first_prime_above_all_secrets() -> None:
    assert [number for number in range(2**256, PRIME + 1) if isprime(number)] == [PRIME]


@pytest.mark.parametrize("secret", SECRETS)
def test_any_threshold_of_shares_gives_the_secret(secret: bytes) -> None:
    shares = split(secret, 3, range(1, 6), random.Random(0).randbytes)
    assert {len(share) for share in shares.values()} == {NUM_SHARE_BYTES}
    for points in itertools.combinations(shares, 3):
        assert Recovery(points).secret(shares) == secret


def test_fewer_shares_fit_every_secret() -> None:
    """Whatever the secret, one value of the missing share gives it: two of three shares exclude nothing."""
    shares = split(SECRETS[2], 3, (1, 2, 3), random.Random(0).randbytes)
    factor = (1 * 2) * pow((1 - 3) * (2 - 3), -1, PRIME) % PRIME  # Lagrange's, of the share at 3
    found = int.from_bytes(SECRETS[2], "little")
    for other in SECRETS:
        change = (int.from_bytes(other, "little") - found) * pow(factor, -1, PRIME)
        third = (int.from_bytes(shares[3], "little") + change) % PRIME
        assert Recovery((1, 2, 3)).secret(shares | {3: third.to_bytes(NUM_SHARE_BYTES, "little")}) == other


def test_fewer_shares_are_distributed_alike_for_every_secret() -> None:
    counts = []
    for secret in SECRETS:
        drawn = random.Random(secret)
        shares = b"".join(
            share[:32] for _ in range(500) for share in split(secret, 3, (1, 2), drawn.randbytes).values()
        )
        counts.append(np.bincount(np.frombuffer(shares, np.uint8), minlength=256))
    assert chi2_contingency(counts).pvalue > 1e-3


def test_shares_of_nothing_are_refused() -> None:
    shares = {1: (2**256).to_bytes(NUM_SHARE_BYTES, "little")}
    with pytest.raises(ValueError, match="not those of one secret"):
        Recovery((1,)).secret(shares)
