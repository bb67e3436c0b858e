"""A secure round in the simulator: this process speaks for its clients, and is its share of the server.

Clients and server are the objects of the protocol and hear of each other by messages alone. What clients draw comes
from the run's seed, so that a run can be repeated message by message; that is for simulation, where nobody has a
secret. The model does not depend on it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedhq_lightning.federated.client_fit import Update
from fedhq_lightning.federated.payload import decoded
from fedhq_lightning.federated.secure.keys import apply_masks
from fedhq_lightning.federated.secure.masking_client import MaskingClient
from fedhq_lightning.federated.secure.messages import BelowThresholdError, Integers, Kind, ProtocolError, RoundTerms
from fedhq_lightning.federated.secure.run_terms import RunTerms
from fedhq_lightning.federated.secure.unmasking_server import UnmaskingServer
from fedhq_lightning.federated.update_checks import check_values
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.phase_clock import phase_of_run
from fedhq_lightning.support.seeds import derive_seed
from fedhq_lightning.types import ClientId, StateDict

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class SecureRounds:
    """Opens the secure rounds of a run.

    Attributes:
        terms: Of the run.
        link: Opens a client's own payload.
        processes: Among which clients and server are spread.
        run: Token of the run, part of what every key is derived for.
        seed: The run's.
    """

    terms: RunTerms
    link: Link
    processes: Processes
    run: str
    seed: int

    def open(self, round_number: int, cohort: Sequence[ClientId], hosted: Iterable[ClientId]) -> SecureRound:
        """Have a cohort exchange keys.

        Args:
            round_number: From 1.
            cohort: All of its clients.
            hosted: Those that this process speaks for.
        """
        return SecureRound(self, round_number, cohort, hosted)


class SecureRound:
    """One round, from the exchange of keys to the mean.

    Args:
        rounds: The run's.
        number: From 1.
        cohort: All clients.
        hosted: Those that this process speaks for.
    """

    def __init__(
        self, rounds: SecureRounds, number: int, cohort: Sequence[ClientId], hosted: Iterable[ClientId]
    ) -> None:
        self._rounds = rounds
        self._number = number
        self._places = {client_id: place for place, client_id in enumerate(cohort)}
        self._hosted = list(hosted)
        self._clients: dict[ClientId, MaskingClient] = {}
        self._inboxes: dict[int, bytes] = {}
        self._sent: dict[ClientId, int] = dict.fromkeys(self._hosted, 0)
        self._heard: dict[ClientId, int] = dict.fromkeys(self._hosted, 0)
        self._server: UnmaskingServer | None = None
        self._ended = ""
        with phase_of_run("secure"):
            try:
                terms = rounds.terms.of_round(rounds.run, number, cohort)
                self._server = self._with_keys_exchanged(terms)
            except ProtocolError as error:
                self._ended = str(error)

    def masked(self, update: Update, received: StateDict, explained: Callable[[ClientRecord, str], str]) -> Update:
        """What a client sends instead of its update, which it checks itself: nobody else can.

        Args:
            update: As its local fit left it.
            received: The model that the round began with.
            explained: Adds to a reason what the client finds in its data.
        """
        record = update.record
        if record.status != "ok":
            return update
        with phase_of_run("secure"):
            try:
                return Update(record, self._input_of(record, update.payload, received))
            except ValueError as error:
                return Update(replace(record, status="quarantined", reason=explained(record, str(error))), b"")

    def receive(self, message: bytes) -> None:
        """Add up one masked update.

        Raises:
            ValueError: Not a message of this round and step.
        """
        if self._server is None:
            raise ProtocolError(self._ended)
        with phase_of_run("secure"):
            self._server.receive_input(message)

    def mean(self, processes: Processes) -> tuple[StateDict, int]:
        """Mean of all updates, and what their examples add up to.

        Raises:
            BelowThresholdError: Too few clients are left.
        """
        if self._server is None:
            raise BelowThresholdError(self._ended)
        server = self._server
        with phase_of_run("secure"):
            arrived = {place for part in processes.gather(server.arrived) for place in part}
            survivors = server.survivors(arrived)
            asked = [each for each in self._staying(Kind.REVEALED) if self._places[each] in arrived]
            for message in self._said({each: self._clients[each].reveal(survivors) for each in asked}):
                server.receive_revealed(message)
            self._hear(asked, len(survivors))
            apply_masks(server.total, server.masks()[processes.rank :: processes.count])
            return self._rounds.terms.grid.mean(_sum_over(processes, server.total))

    def charged(self, record: ClientRecord) -> ClientRecord:
        """The record of a client of this process, with the bytes that it sent and received in all."""
        sent, heard = self._sent[record.client_id], self._heard[record.client_id]
        return replace(record, uplink_bytes=sent, downlink_bytes=record.downlink_bytes + heard)

    def _with_keys_exchanged(self, terms: RoundTerms) -> UnmaskingServer:
        server = UnmaskingServer(terms)
        for client_id in self._staying(Kind.KEYS):
            seed = derive_seed(self._rounds.seed, "secure aggregation", self._number, client_id)
            self._clients[client_id] = MaskingClient(terms, self._places[client_id], random.Random(seed).randbytes)
        for message in self._said({each: client.advertise() for each, client in self._clients.items()}):
            server.receive_keys(message)
        roster = server.roster()
        self._hear(self._clients, len(roster))
        staying = self._staying(Kind.SHARES)
        for message in self._said({each: self._clients[each].share_keys(roster) for each in staying}):
            server.receive_shares(message)
        self._inboxes = server.inboxes()
        for client_id in staying:
            self._hear([client_id], len(self._inboxes[self._places[client_id]]))
        return server

    def _input_of(self, record: ClientRecord, payload: bytes, received: StateDict) -> bytes:
        client_id, link = record.client_id, self._rounds.link
        if self._server is None:
            raise ProtocolError(self._ended)
        if client_id not in self._staying(Kind.INPUT):
            raise ProtocolError("it dropped out of secure aggregation")
        update = link.open(payload, self._number, client_id)
        check_values(update, received if link.uplink == "delta" else None)
        values = self._rounds.terms.grid.integers(decoded(update), record.num_examples)
        message = self._clients[client_id].mask(self._inboxes[self._places[client_id]], values)
        self._sent[client_id] += len(message)
        return message

    def _staying(self, step: Kind) -> list[ClientId]:
        """The clients of this process that are still there for their answer to a step."""
        drops_out = self._rounds.terms.asked.drops_out
        lost = {each: drops_out(self._number, each) for each in self._hosted}
        return [each for each, before in lost.items() if before is None or before > step]

    def _said(self, answers: dict[ClientId, bytes]) -> list[bytes]:
        """The answers of all processes' clients, which the server, on every process, receives."""
        for client_id, message in answers.items():
            self._sent[client_id] += len(message)
        framed = b"".join(part for each in answers.values() for part in (_LENGTH.pack(len(each)), each))
        return [message for part in self._rounds.processes.gather_bytes(framed) for message in _messages_in(part)]

    def _hear(self, client_ids: Iterable[ClientId], num_bytes: int) -> None:
        for client_id in client_ids:
            self._heard[client_id] += num_bytes


def _messages_in(framed: bytes) -> Iterable[bytes]:
    begin = 0
    while begin < len(framed):
        (length,) = _LENGTH.unpack_from(framed, begin)
        begin += _LENGTH.size + length
        yield framed[begin - length : begin]


def _sum_over(processes: Processes, part: Integers) -> Integers:
    """Sum of all processes' parts, modulo 2**bits; halves of 32 bits leave room for what is carried."""
    if processes.count == 1:
        return part
    wide = part.astype(np.uint64)
    halves = np.stack([wide & np.uint64(2**32 - 1), wide >> np.uint64(32)]).view(np.int64)
    low, high = processes.sum_integers(torch.from_numpy(halves)).numpy().view(np.uint64)
    total: Integers = (low + (high << np.uint64(32))).astype(part.dtype)
    return total
