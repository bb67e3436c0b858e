"""A secure round from messages alone, in which clients drop out where a test says."""

from __future__ import annotations

import random
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from fedhq_lightning.federated.secure.keys import apply_masks
from fedhq_lightning.federated.secure.masking_client import MaskingClient
from fedhq_lightning.federated.secure.messages import Kind, RoundTerms
from fedhq_lightning.federated.secure.unmasking_server import UnmaskingServer


def terms(size: int = 5, threshold: int = 3, num_values: int = 7, bits: int = 64, number: int = 1) -> RoundTerms:
    return RoundTerms("run", number, tuple(f"client {place}" for place in range(size)), threshold, num_values, bits)


def clients_of(agreed: RoundTerms, seed: int = 0) -> list[MaskingClient]:
    return [
        MaskingClient(agreed, place, random.Random(f"{seed} {place}").randbytes) for place in range(len(agreed.cohort))
    ]


def inputs_of(agreed: RoundTerms, seed: int = 0) -> list[NDArray[np.uint64]]:
    drawn = np.random.default_rng(seed)
    kind = np.uint64 if agreed.bits == 64 else np.uint32
    most = 2**agreed.bits - 1
    return [drawn.integers(0, most, agreed.num_values, kind, endpoint=True) for _ in agreed.cohort]


class Conversation:
    """Goes through the steps, without the clients that drop out before their answer to one.

    Args:
        agreed: Terms.
        missing: Step to the places of the clients that do not answer in it, nor later.
    """

    def __init__(self, agreed: RoundTerms, missing: dict[Kind, Collection[int]] | None = None, seed: int = 0) -> None:
        self.agreed = agreed
        self.missing = missing or {}
        self.clients = dict(enumerate(clients_of(agreed, seed)))
        self.server = UnmaskingServer(agreed)
        self.sent: dict[Kind, dict[int, bytes]] = {}

    def share(self) -> dict[int, bytes]:
        """Keys and shares; what is in the inboxes."""
        for place, client in self._left(Kind.KEYS):
            self.server.receive_keys(self._note(Kind.KEYS, place, client.advertise()))
        roster = self.server.roster()
        for place, client in self._left(Kind.SHARES):
            self.server.receive_shares(self._note(Kind.SHARES, place, client.share_keys(roster)))
        return self.server.inboxes()

    def run(self, inputs: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
        """The sum that the server finds."""
        inboxes = self.share()
        for place, client in self._left(Kind.INPUT):
            self.server.receive_input(self._note(Kind.INPUT, place, client.mask(inboxes[place], inputs[place])))
        survivors = self.server.survivors()
        for place, client in self._left(Kind.REVEALED):
            self.server.receive_revealed(self._note(Kind.REVEALED, place, client.reveal(survivors)))
        apply_masks(self.server.total, self.server.masks())
        return self.server.total

    def _left(self, step: Kind) -> list[tuple[int, MaskingClient]]:
        for place in self.missing.get(step, ()):
            self.clients.pop(place, None)
        return list(self.clients.items())

    def _note(self, kind: Kind, place: int, message: bytes) -> bytes:
        self.sent.setdefault(kind, {})[place] = message
        return message
