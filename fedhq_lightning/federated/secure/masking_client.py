"""A client's side of a secure round.

Four answers, in order: `advertise`, `share_keys`, `mask`, `reveal`. What a client draws and agrees on lives in one
object for one round, and is gone with it.

Source: K. Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", Figure 4,
without what it adds against a server that deviates from the protocol (signatures, the consistency check).
"""

from __future__ import annotations

import os

from fedhq_lightning.federated.secure.keys import (
    KeyPair,
    Mask,
    apply_masks,
    seal,
    unseal,
    words_for,
)
from fedhq_lightning.federated.secure.messages import (
    NUM_KEY_BYTES,
    NUM_SEALED_BYTES,
    NUM_SHARE_BYTES,
    Integers,
    Kind,
    ProtocolError,
    RoundTerms,
    read,
    write,
)
from fedhq_lightning.federated.secure.roster import Roster
from fedhq_lightning.federated.secure.shamir import Randomness, split


class MaskingClient:
    """One client in one secure round.

    Args:
        terms: Of the round.
        place: The client's, in the cohort.
        randomness: Where its secrets come from.
    """

    def __init__(self, terms: RoundTerms, place: int, randomness: Randomness = os.urandom) -> None:
        self._terms = terms
        self._place = place
        self._randomness = randomness
        self._sealing = KeyPair(randomness(NUM_KEY_BYTES))
        self._masking = KeyPair(randomness(NUM_KEY_BYTES))
        self._self_mask = randomness(NUM_KEY_BYTES)
        self._roster: Roster | None = None
        self._inbox: dict[int, bytes] = {}
        self._next = Kind.KEYS

    def advertise(self) -> bytes:
        """Its two public keys: one for shares, one for masks."""
        self._step(Kind.KEYS)
        return self._message(Kind.KEYS, {self._place: self._sealing.public + self._masking.public})

    def share_keys(self, roster: bytes) -> bytes:
        """Shares of its two secrets, one of each for every client of the roster, sealed for it.

        Args:
            roster: The server's list of who takes part, with their public keys.

        Raises:
            ProtocolError: The roster is not one that this client may trust its secrets to.
        """
        self._step(Kind.SHARES)
        self._roster = known = Roster(roster, self._terms)
        if known.sealing.get(self._place) != self._sealing.public or known.masking[self._place] != self._masking.public:
            raise ProtocolError("a roster without this client's own keys")
        points = [place + 1 for place in known.sealing]
        of_key = split(self._masking.secret, self._terms.threshold, points, self._randomness)
        of_mask = split(self._self_mask, self._terms.threshold, points, self._randomness)
        rows = {}
        for place, public in known.sealing.items():
            if place != self._place:
                words = words_for("shares", known.digest, self._place, place)
                key = self._sealing.agree(public, words)
                rows[place] = seal(key, of_key[place + 1] + of_mask[place + 1], words)
        self._inbox[self._place] = of_key[self._place + 1] + of_mask[self._place + 1]
        return self._message(Kind.SHARES, rows)

    def mask(self, inbox: bytes, values: Integers) -> bytes:
        """Its input, masked once with every client that shared its keys, and once by itself.

        Args:
            inbox: The others' sealed shares for this client; they are opened when they are asked for.
            values: (num_values,) unsigned integers of the round's bits; left as they are.

        Raises:
            ProtocolError: The inbox is not one of this round, or too few have sent shares.
        """
        self._step(Kind.INPUT)
        terms, roster = self._terms, self._known_roster()
        if len(values) != terms.num_values or values.itemsize * 8 != terms.bits:
            raise ProtocolError(f"{len(values)} values: the round sums {terms.num_values} of {terms.bits} bits")
        rows = read(inbox, Kind.INBOX, terms, NUM_SEALED_BYTES)
        if self._place in rows or not rows.keys() <= roster.sealing.keys():
            raise ProtocolError("an inbox with shares of a client that is not on the roster, or of this one")
        terms.check_enough(len(rows) + 1, Kind.SHARES)
        self._inbox |= {place: bytes(row) for place, row in rows.items()}
        masks = [roster.pair_mask(self._masking, self._place, place) for place in rows]
        masked = values.astype(values.dtype.newbyteorder("<"))
        apply_masks(masked, [*masks, Mask(self._self_mask, True)])
        return self._message(Kind.INPUT, {self._place: masked.data.cast("B")})

    def reveal(self, survivors: bytes) -> bytes:
        """One share for each client that shared its keys: of its self-mask where its input arrived, else of its key.

        Asked once only, since both secrets of one client together would unmask its input.

        Args:
            survivors: The server's list of the clients whose input arrived.

        Raises:
            ProtocolError: The list is too short, or names a client that has not shared its keys; a share was damaged.
        """
        self._step(Kind.REVEALED)
        arrived = read(survivors, Kind.SURVIVORS, self._terms, 0).keys()
        if not arrived <= self._inbox.keys():
            raise ProtocolError("an input is said to have come from a client that has not shared its keys")
        self._terms.check_enough(len(arrived), Kind.INPUT)
        rows = {}
        for place in self._inbox:
            shares = self._shares_of(place)
            rows[place] = shares[NUM_SHARE_BYTES:] if place in arrived else shares[:NUM_SHARE_BYTES]
        return self._message(Kind.REVEALED, rows)

    def _shares_of(self, place: int) -> bytes:
        if place == self._place:
            return self._inbox[place]
        roster = self._known_roster()
        words = words_for("shares", roster.digest, place, self._place)
        return unseal(self._sealing.agree(roster.sealing[place], words), self._inbox[place], words)

    def _known_roster(self) -> Roster:
        if self._roster is None:
            raise ProtocolError("no roster has come yet")
        return self._roster

    def _step(self, answer: Kind) -> None:
        if answer != self._next:
            raise ProtocolError(f"asked for {answer.name.lower()} when {self._next.name.lower()} are due")
        order = [Kind.KEYS, Kind.SHARES, Kind.INPUT, Kind.REVEALED]
        self._next = order[order.index(answer) + 1] if answer != Kind.REVEALED else Kind.ROSTER

    def _message(self, kind: Kind, rows: dict[int, bytes] | dict[int, memoryview]) -> bytes:
        return write(kind, self._terms, self._place, rows)
