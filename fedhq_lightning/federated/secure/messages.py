"""What clients and server of a secure round say to each other, as bytes.

Every message is a table: a row of bytes for each of some clients. Its header names its kind, the round that it belongs
to, by the digest of what all agreed on before, and its sender. Who receives one knows how long its rows are. That a
message is its sender's own is for the connection to vouch for, for example TLS with client certificates, or seals.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedhq_lightning.types import ClientId

Integers: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""uint32 or uint64: what is computed with them is modulo 2**32 or 2**64."""
SERVER = 2**32 - 1
"""As a sender; clients are named by their place in the cohort."""
NUM_KEY_BYTES = 32
NUM_ROSTER_BYTES = 2 * NUM_KEY_BYTES
"""Of a client's two public keys."""
NUM_SHARE_BYTES = 33
NUM_SEALED_BYTES = 2 * NUM_SHARE_BYTES + 16
"""A share of each of two secrets, and the tag of what seals them."""
FEWEST_CLIENTS = 3
"""Of two, each finds the other's update by taking its own from the sum."""
_HEAD = struct.Struct("<4sB32sIIQ")
_MAGIC = b"FSA1"
_PLACE = struct.Struct("<I")


class ProtocolError(ValueError):
    """A message that must not be used: damaged, of another round or step, or not what the protocol allows."""


class BelowThresholdError(ProtocolError):
    """Too few clients are left for the sum to be known; the round ends without one."""


class Kind(IntEnum):
    """The messages, in the order of the protocol."""

    KEYS = 1
    ROSTER = 2
    SHARES = 3
    INBOX = 4
    INPUT = 5
    SURVIVORS = 6
    REVEALED = 7


@dataclass(frozen=True)
class RoundTerms:
    """What client and server agree on before a secure round. Nothing of it is secret.

    Attributes:
        run: Token of the run, the same for all of its processes, and of no other run.
        round: Its number.
        cohort: The clients. Messages name one by its place here, from 0.
        threshold: How many of them must be left at the end, and shares that give back a secret.
        num_values: Integers that each client sends.
        bits: The integers are added modulo 2**bits.

    Raises:
        BelowThresholdError: Fewer clients than the threshold.
        ProtocolError: Fewer than three clients, or a threshold that is not above half of them: with half, a server
            could ask one half for one secret of a client and the other half for the other.
    """

    run: str
    round: int
    cohort: tuple[ClientId, ...]
    threshold: int
    num_values: int
    bits: int = 64

    def __post_init__(self) -> None:
        size = len(self.cohort)
        if size < FEWEST_CLIENTS:
            raise ProtocolError(f"{size} clients: a sum hides what each adds to it from {FEWEST_CLIENTS} clients on")
        if self.threshold > size:
            raise BelowThresholdError(f"a cohort of {size} clients, and secure aggregation needs {self.threshold}")
        if 2 * self.threshold <= size:
            raise ProtocolError(f"threshold {self.threshold}: must be above half of the {size} clients")

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for all of it: in every message, and in whatever a key is derived for."""
        values = [self.run, self.round, list(self.cohort), self.threshold, self.num_values, self.bits]
        return hashlib.sha256(json.dumps(values).encode()).digest()

    def check_enough(self, count: int, after: Kind) -> None:
        """Refuse to go on with too few clients.

        Raises:
            BelowThresholdError: Fewer than the threshold.
        """
        if count < self.threshold:
            raise BelowThresholdError(
                f"{count} of {len(self.cohort)} clients are left after {after.name.lower()}, and secure aggregation "
                f"needs {self.threshold}"
            )


def write(kind: Kind, terms: RoundTerms, sender: int, rows: Mapping[int, bytes | memoryview]) -> bytes:
    """A message.

    Args:
        kind: What it says.
        terms: Of its round.
        sender: Place of a client in the cohort, or `SERVER`.
        rows: Place of a client to what is said of it, or for it; all of one length.
    """
    row_bytes = len(next(iter(rows.values()), b""))
    head = _HEAD.pack(_MAGIC, kind, terms.digest, sender, len(rows), row_bytes)
    return b"".join([head, *(part for place, row in rows.items() for part in (_PLACE.pack(place), row))])


def sender_of(message: bytes) -> int:
    """Whose message it says that it is."""
    if len(message) < _HEAD.size:
        raise ProtocolError(f"{len(message)} bytes, shorter than any message")
    return int(_HEAD.unpack_from(message)[3])


def read(message: bytes, kind: Kind, terms: RoundTerms, row_bytes: int) -> dict[int, memoryview]:
    """The rows of a message.

    Args:
        message: As it came.
        kind: What it should be.
        terms: Of the round that it should belong to.
        row_bytes: Length of its rows.

    Raises:
        ProtocolError: Another kind, round or length, or a row for nobody of the cohort, or two for one.
    """
    sender = sender_of(message)
    magic, found, digest, _, count, found_bytes = _HEAD.unpack_from(message)
    if magic != _MAGIC or found != kind:
        raise ProtocolError(f"another message than {kind.name.lower()}")
    if digest != terms.digest:
        raise ProtocolError(f"a message of another round than {terms.round}, or on other terms")
    size = len(terms.cohort)
    is_known = sender == SERVER or sender < size
    if (found_bytes != row_bytes and count) or count > size or not is_known:
        raise ProtocolError(f"{count} rows of {found_bytes} bytes from {sender}: expected rows of {row_bytes}")
    if len(message) != _HEAD.size + count * (_PLACE.size + row_bytes):
        raise ProtocolError(f"{len(message)} bytes, more or less than it says")
    whole, rows = memoryview(message), dict[int, memoryview]()
    for begin in range(_HEAD.size, len(message), _PLACE.size + row_bytes):
        (place,) = _PLACE.unpack_from(message, begin)
        if place >= size or place in rows:
            raise ProtocolError(f"a row for client {place} of {size}, or a second one")
        rows[place] = whole[begin + _PLACE.size : begin + _PLACE.size + row_bytes]
    return rows


def uplink_bytes(cohort_size: int, num_values: int, bits: int) -> int:
    """What a client sends in a round in which nobody drops out: keys, shares, its input and what it reveals."""
    input_bytes = num_values * bits // 8
    rows = (1, NUM_ROSTER_BYTES), (cohort_size - 1, NUM_SEALED_BYTES), (1, input_bytes), (cohort_size, NUM_SHARE_BYTES)
    return sum(_num_bytes(*each) for each in rows)


def downlink_bytes(cohort_size: int) -> int:
    """What a client receives in such a round beside the model: roster, inbox and who survived."""
    rows = (cohort_size, NUM_ROSTER_BYTES), (cohort_size - 1, NUM_SEALED_BYTES), (cohort_size, 0)
    return sum(_num_bytes(*each) for each in rows)


def _num_bytes(num_rows: int, row_bytes: int) -> int:
    return _HEAD.size + num_rows * (_PLACE.size + row_bytes)
