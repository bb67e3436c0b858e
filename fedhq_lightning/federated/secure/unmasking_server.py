"""The server's side of a secure round: it adds up masked inputs and takes the masks off their sum.

It collects one message of each kind from each client, in the order of the protocol, and closes a step by asking for
what the next one needs: `roster`, `inboxes`, `survivors`, `masks`. Who has not answered by then has dropped out.

Source: K. Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", Figure 4.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedhq_lightning.federated.secure.keys import KeyPair, Mask
from fedhq_lightning.federated.secure.messages import (
    NUM_ROSTER_BYTES,
    NUM_SEALED_BYTES,
    NUM_SHARE_BYTES,
    SERVER,
    Integers,
    Kind,
    ProtocolError,
    RoundTerms,
    read,
    sender_of,
    write,
)
from fedhq_lightning.federated.secure.roster import Roster
from fedhq_lightning.federated.secure.shamir import Recovery


class UnmaskingServer:
    """The server in one secure round.

    It may be spread over processes: each then receives all messages but the inputs, of which it receives some.

    Args:
        terms: Of the round.

    Attributes:
        total: Sum of the inputs that came here, modulo 2**bits; still masked.
        roster_message: What clients were told of who takes part; empty before.
    """

    def __init__(self, terms: RoundTerms) -> None:
        self._terms = terms
        self.total: Integers = np.zeros(terms.num_values, f"<u{terms.bits // 8}")
        self._keys: dict[int, bytes] = {}
        self._inboxes: dict[int, dict[int, bytes]] = {}
        self._sharers: set[int] = set()
        self._arrived: set[int] = set()
        self._revealed: dict[int, dict[int, bytes]] = {}
        self.roster_message = b""
        self._open = Kind.KEYS

    def receive_keys(self, message: bytes) -> None:
        """Take a client's public keys.

        Raises:
            ProtocolError: See `receive_input`.
        """
        sender = self._sender(message, Kind.KEYS, self._keys)
        rows = read(message, Kind.KEYS, self._terms, NUM_ROSTER_BYTES)
        self._keys[sender] = bytes(_only(rows, sender))

    def roster(self) -> bytes:
        """What every client is told: who takes part, with which public keys.

        Raises:
            BelowThresholdError: Too few have sent keys.
        """
        self._close(Kind.KEYS, Kind.SHARES, len(self._keys))
        self.roster_message = write(Kind.ROSTER, self._terms, SERVER, dict(sorted(self._keys.items())))
        return self.roster_message

    def receive_shares(self, message: bytes) -> None:
        """Take a client's sealed shares, which are for the others.

        Raises:
            ProtocolError: See `receive_input`.
        """
        sender = self._sender(message, Kind.SHARES, self._sharers)
        rows = read(message, Kind.SHARES, self._terms, NUM_SEALED_BYTES)
        if rows.keys() != self._keys.keys() - {sender}:
            raise ProtocolError(f"client {sender} sent shares for others than those on the roster")
        self._sharers.add(sender)
        for place, row in rows.items():
            self._inboxes.setdefault(place, {})[sender] = bytes(row)

    def inboxes(self) -> dict[int, bytes]:
        """Place of each client that has sent shares to what it is sent: the others' shares for it.

        Raises:
            BelowThresholdError: Too few have sent shares.
        """
        self._close(Kind.SHARES, Kind.INPUT, len(self._sharers))
        inboxes, self._inboxes = self._inboxes, {}
        return {
            place: write(Kind.INBOX, self._terms, SERVER, dict(sorted(inboxes.get(place, {}).items())))
            for place in sorted(self._sharers)
        }

    def receive_input(self, message: bytes) -> None:
        """Add up a client's masked input.

        Raises:
            ProtocolError: Not its client's message of this step and round, or its second.
        """
        sender = self._sender(message, Kind.INPUT, self._arrived)
        if sender not in self._sharers:
            raise ProtocolError(f"client {sender} sent an input, and has not shared its keys")
        row = _only(read(message, Kind.INPUT, self._terms, self.total.nbytes), sender)
        self._arrived.add(sender)
        self.total += np.frombuffer(row, self.total.dtype)

    @property
    def arrived(self) -> list[int]:
        """Places of the clients whose input came here."""
        return sorted(self._arrived)

    def survivors(self, elsewhere: Iterable[int] = ()) -> bytes:
        """What the clients are asked with: whose inputs have come. Those that come later are refused.

        Args:
            elsewhere: Places of the clients whose input came to another process.

        Raises:
            BelowThresholdError: Too few have come.
        """
        self._arrived |= set(elsewhere)
        self._close(Kind.INPUT, Kind.REVEALED, len(self._arrived))
        return write(Kind.SURVIVORS, self._terms, SERVER, dict.fromkeys(self.arrived, b""))

    def receive_revealed(self, message: bytes) -> None:
        """Take a client's shares of the others' secrets.

        Raises:
            ProtocolError: See `receive_input`.
        """
        sender = self._sender(message, Kind.REVEALED, self._revealed)
        rows = read(message, Kind.REVEALED, self._terms, NUM_SHARE_BYTES)
        if sender not in self._sharers or rows.keys() != self._sharers:
            raise ProtocolError(f"client {sender} revealed shares of others than those that have shared their keys")
        self._revealed[sender] = {place: bytes(row) for place, row in rows.items()}

    def masks(self) -> list[Mask]:
        """What is to be applied to the sum of all inputs, to take their masks off it.

        Raises:
            BelowThresholdError: Too few have revealed shares.
            ProtocolError: Shares that give back no secret, or not the one that belongs to a client's public key.
        """
        self._close(Kind.REVEALED, Kind.ROSTER, len(self._revealed))
        answered = sorted(self._revealed)[: self._terms.threshold]
        recovery = Recovery([place + 1 for place in answered])
        roster, found = Roster(self.roster_message, self._terms), list[Mask]()
        for place in sorted(self._sharers):
            try:
                secret = recovery.secret({each + 1: self._revealed[each][place] for each in answered})
            except ValueError as error:
                raise ProtocolError(f"client {place}: {error}") from None
            if place in self._arrived:
                found.append(Mask(secret, False))
                continue
            pair = KeyPair(secret)
            if pair.public != roster.masking[place]:
                raise ProtocolError(
                    f"client {place}: the shares of its key are not those of the key that it advertised"
                )
            # As the client that is gone would have: what the others added or took off goes with it.
            found += [roster.pair_mask(pair, place, other) for other in self.arrived]
        return found

    def _sender(self, message: bytes, kind: Kind, seen: Iterable[int]) -> int:
        sender = sender_of(message)
        if kind != self._open:
            raise ProtocolError(f"{kind.name.lower()} of client {sender} when {self._open.name.lower()} are due")
        if sender in seen:
            raise ProtocolError(f"client {sender} has sent its {kind.name.lower()} before")
        return sender

    def _close(self, step: Kind, following: Kind, count: int) -> None:
        if step != self._open:
            raise ProtocolError(f"{step.name.lower()} were closed before, or {self._open.name.lower()} are still due")
        self._terms.check_enough(count, step)
        self._open = following


def _only(rows: dict[int, memoryview], sender: int) -> memoryview:
    if rows.keys() != {sender}:
        raise ProtocolError(f"client {sender} sent a row for another")
    return rows[sender]
