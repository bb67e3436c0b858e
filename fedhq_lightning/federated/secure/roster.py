"""Who takes part in a secure round, with which public keys, as the server tells every client."""

from __future__ import annotations

import hashlib

from fedhq_lightning.federated.secure.keys import KeyPair, Mask, words_for
from fedhq_lightning.federated.secure.messages import (
    NUM_KEY_BYTES,
    NUM_ROSTER_BYTES,
    Kind,
    ProtocolError,
    RoundTerms,
    read,
)


class Roster:
    """The server's list, read.

    Args:
        message: As it came.
        terms: Of the round.

    Attributes:
        sealing: Place of each client to its public key for shares.
        masking: Place of each client to its public key for masks.
        digest: Stands for the terms and all keys. Keys are derived for it, so that clients who were told different
            lists agree on nothing.

    Raises:
        ProtocolError: Not a roster of this round; too short; a key that occurs twice.
    """

    def __init__(self, message: bytes, terms: RoundTerms) -> None:
        rows = read(message, Kind.ROSTER, terms, NUM_ROSTER_BYTES)
        terms.check_enough(len(rows), Kind.KEYS)
        self.sealing = {place: bytes(row[:NUM_KEY_BYTES]) for place, row in rows.items()}
        self.masking = {place: bytes(row[NUM_KEY_BYTES:]) for place, row in rows.items()}
        if len({*self.sealing.values(), *self.masking.values()}) < 2 * len(rows):
            raise ProtocolError("a roster in which a public key occurs twice")
        self.digest = hashlib.sha256(message).digest()

    def pair_mask(self, own: KeyPair, place: int, other: int) -> Mask:
        """The mask that two clients share: the one of the lower place adds it, the other takes it off.

        Args:
            own: Key pair for masks of the client at `place`.
            place: Whose input it is for.
            other: The other client's place.
        """
        words = words_for("mask", self.digest, min(place, other), max(place, other))
        return Mask(own.agree(self.masking[other], words), place < other)
