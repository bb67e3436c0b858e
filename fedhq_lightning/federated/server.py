"""The server's step: receive, check, transform, accumulate, reduce, step.

One piece of code for `FederatedTrainer`, whose processes each receive their share of a cohort's updates, and for silos,
each of which receives everybody's and computes the same global model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.aggregator import Aggregator, Gathered
from fedhq_lightning.federated.beside import beside_of, model_of, named_beside
from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.federated.held_updates import HeldUpdate, HeldUpdates
from fedhq_lightning.federated.payload import PackedState, PayloadError, decoded
from fedhq_lightning.federated.secure.messages import BelowThresholdError
from fedhq_lightning.federated.update_checks import Norms, check_norms, check_values, limits_of, norms_of
from fedhq_lightning.federated.update_directions import UpdateDirections
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.quantize.packed_weight import PackedWeight
from fedhq_lightning.risk.update_sketch import Sketcher
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.tensors import same_values
from fedhq_lightning.support.text import shortened
from fedhq_lightning.types import ClientId, StateDict

ServerTransform = Callable[[ClientId, StateDict], StateDict]
"""What is done to one decoded update before it is added up; it gives a new state and leaves the old one alone."""


class Accumulator(Protocol):
    """Adds up a round's updates; neither their order nor the processes that they reach may change a bit."""

    def add(self, state: Mapping[str, Tensor | PackedWeight], weight: int) -> None:
        """Add one update whole, or nothing of it; its weights are still packed where nobody else has looked at them.

        Raises:
            ValueError: It cannot be added.
        """

    def mean(self, processes: Processes) -> tuple[StateDict, int]:
        """Mean of all processes' updates in float32, and the sum of their weights, the same on every process.

        Called once, by every process, at the end. Of no update the mean is empty and the weight 0.
        """


class MaskedSum(Protocol):
    """Adds up updates that are masked, each by its client: the server can look into none of them."""

    def receive(self, message: bytes) -> None:
        """Add one.

        Raises:
            ValueError: Not a message of this round.
        """

    def mean(self, processes: Processes) -> tuple[StateDict, int]:
        """As `Accumulator.mean`.

        Raises:
            BelowThresholdError: Too few clients are left to take the masks off.
        """


def exact_mean(bases: StateDict | None) -> Accumulator:
    """The mean weighted by examples, whatever updates are compared with."""
    return ExactMean()


@dataclass(frozen=True)
class Server:
    """What the step is made of, the same in every round of a run. Each part with a default is a socket.

    An update that fails a check is left out and its client named, and the round goes on without it. What no round
    changes (`Link.fixed_names`) is with the clients that took part before, so a step must leave it alone. What a client
    adds to its own gradients is `Aggregator.client_term`.

    Attributes:
        link: Encodes what goes down, decodes and checks what comes up.
        aggregator: Makes the next global model from the mean.
        parameter_names: Trained parameters, by their names in the state.
        processes: Those that receive updates of one round. A silo receives everybody's: it is alone.
        transforms: Applied to each decoded update, in order.
        accumulator: Makes an empty one for each round, given what updates are compared with where they are models, or
            None where they are differences.
        sketcher: Where the directions of updates are wanted.
        max_norm_ratio: How many times the median norm an update may have, see `limits_of`; None for any.
        typical_examples: Of a client. The norm of one with more is taken for as many, since a longer fit goes farther.
        unseal: Takes the seal off what a client sent, or raises `PayloadError`; None where nothing is sealed.
        min_updates: How many a step takes, 1 or more; the model stays where fewer came.
        total_examples: Of all clients; None where that is not known, and those of a round count as all.
        noisy_sum: Makes of a round's number what takes the place of `accumulator` under central privacy. It adds
            differences to what clients received, also where they send models.
    """

    link: Link
    aggregator: Aggregator
    parameter_names: frozenset[str]
    processes: Processes
    transforms: tuple[ServerTransform, ...] = ()
    accumulator: Callable[[StateDict | None], Accumulator] = exact_mean
    sketcher: Sketcher | None = None
    max_norm_ratio: float | None = None
    typical_examples: float = math.inf
    unseal: Callable[[ClientId, bytes], bytes] | None = None
    min_updates: int = 1
    total_examples: int | None = None
    noisy_sum: Callable[[int], Accumulator] | None = None

    def open_round(
        self,
        round_number: int,
        current: StateDict,
        usual_norms: Norms | None = None,
        masked_sum: MaskedSum | None = None,
    ) -> ServerRound:
        """Begin a round: encode the global model as every client of the round receives it.

        Args:
            round_number: From 1.
            current: The global model.
            usual_norms: What the round before found, if there was one.
            masked_sum: Where updates come masked: it takes the place of all checks, transforms and of the accumulator.
        """
        with_beside = self._with_beside(current)
        payload = self.link.encode_down(with_beside, round_number)
        received = self.link.arrived(payload, with_beside, round_number)
        return ServerRound(self, round_number, current, received, len(payload), usual_norms, masked_sum)

    def payload_down(self, current: StateDict, round_number: int) -> bytes:
        """What goes down to every client of a round.

        Args:
            current: The global model.
            round_number: From 1.
        """
        return self.link.encode_down(self._with_beside(current), round_number)

    def _with_beside(self, current: StateDict) -> StateDict:
        parameters = {name: current[name] for name in self.link.trained(self.parameter_names)}
        return current | named_beside(self.aggregator.beside_down(parameters))


@dataclass(frozen=True)
class Aggregated:
    """What follows from the updates of a round; the model is the same on every process.

    Attributes:
        state: The next global model.
        total_weight: Sum of the weights of the updates that count; 0 where too few did, and the model stayed.
        num_updates: How many were usable.
        refused: Client to why its update was left out, of those that this process received.
        divergences: 1 - cosine with the mean of each update that this process received, where asked for.
        usual_norms: Median norms of the round's updates, which tell in the next round what is usual.
    """

    state: StateDict
    total_weight: int
    num_updates: int
    refused: Mapping[ClientId, str]
    divergences: Mapping[ClientId, float | None]
    usual_norms: Norms


class ServerRound:
    """One round at the server.

    Args:
        server: The run's.
        round_number: From 1.
        current: The global model.
        received: What every client of the round received, with what came beside the model.
        downlink_bytes: Size of the round's payload, for one client.
        usual_norms: Median norms of the updates of the round before, see `Aggregated.usual_norms`.
        masked_sum: See `Server.open_round`.
    """

    def __init__(
        self,
        server: Server,
        round_number: int,
        current: StateDict,
        received: StateDict,
        downlink_bytes: int = 0,
        usual_norms: Norms | None = None,
        masked_sum: MaskedSum | None = None,
    ) -> None:
        self.number = round_number
        self.received = model_of(received)
        self.received_beside = beside_of(received)
        self.downlink_bytes = downlink_bytes
        self._bases = self.received | server.link.no_change_beside()
        self._server = server
        self._current = current
        self._usual_norms = usual_norms
        self._is_model = server.link.uplink == "weights"
        self._sum = self._empty_sum()
        self._masked_sum = masked_sum
        self._seen: set[ClientId] = set()
        self._sent_in: dict[ClientId, int] = {}
        self._norms: list[Norms] = []
        self._held = HeldUpdates()
        self._num_added = 0
        self._refused: dict[ClientId, str] = {}
        self._directions: UpdateDirections | None = None
        if server.sketcher is not None:
            names = server.parameter_names
            self._directions = UpdateDirections(server.link.uplink, server.sketcher, names, self.received)

    def payload_down(self) -> bytes:
        """The payload that every client of the round receives, written anew: it is as large as a model."""
        return self._server.payload_down(self._current, self.number)

    def receive(
        self,
        client_id: ClientId,
        payload: bytes,
        num_examples: int,
        most_examples: int | None = None,
        sent_in: int | None = None,
    ) -> None:
        """Check one client's update and add it up, or leave it out and note why.

        One that moves the model by much more than updates usually do waits until all have come: the others tell whether
        it is too much. In the first round all wait.

        Args:
            client_id: Who should have sent it.
            payload: What arrived.
            num_examples: Its weight.
            most_examples: That it can have, where the weight is of its own choice.
            sent_in: The round whose model it began with, where that is an earlier one.

        Raises:
            PayloadError: The client's second in this round, which changes nothing.
        """
        if client_id in self._seen:
            raise PayloadError(f"client {client_id} has sent an update in round {self.number} before")
        self._seen.add(client_id)
        with self._refusing(client_id):
            if self._masked_sum is not None:
                self._masked_sum.receive(payload)
                self._num_added += 1
                return
            if num_examples < 1:
                raise PayloadError("it saw no example in this round")
            if most_examples is not None and num_examples > most_examples:
                raise PayloadError(f"it claims {num_examples} examples, and can have {most_examples} at most")
            server = self._server
            if server.unseal is not None:
                payload = server.unseal(client_id, payload)
            self._sent_in[client_id] = self.number if sent_in is None else sent_in
            update = server.link.open(payload, self._sent_in[client_id], client_id)
            norms = norms_of(update, self._bases if self._is_model else None, server.parameter_names)
            norms = norms.over(max(1.0, num_examples / server.typical_examples))
            check_values(update, None if self._is_model else self.received)
            self._norms.append(norms)
            if server.max_norm_ratio is None or self._is_usual(norms, server.max_norm_ratio):
                self._add(client_id, update, num_examples)
            else:
                self._held.add(HeldUpdate(client_id, num_examples, norms), payload)

    def close(self) -> Aggregated:
        """Bring together what all processes received, step, and let go of the sum, which is large."""
        server = self._server
        everyone = [Norms(*each) for part in server.processes.gather(self._norms) for each in part]
        limits, usual_norms = limits_of(everyone, self._usual_norms, server.max_norm_ratio or math.inf)
        for held, payload in self._held.take():
            with self._refusing(held.client_id):
                check_norms(held.norms, limits)
                update = server.link.open(payload, self._sent_in[held.client_id], held.client_id)
                self._add(held.client_id, update, held.num_examples)
        num_updates = sum(server.processes.gather(self._num_added))
        if num_updates < server.min_updates:
            self._sum = self._empty_sum()
            return Aggregated(self._current, 0, num_updates, self._refused, {}, usual_norms)
        try:
            summed, total_weight = (self._masked_sum or self._sum).mean(server.processes)
        except BelowThresholdError as error:  # what clients sent is lost with those who could have unmasked it
            lost = dict.fromkeys(self._seen - self._refused.keys(), str(error))
            return Aggregated(self._current, 0, 0, self._refused | lost, {}, usual_norms)
        self._sum = self._empty_sum()
        if self._takes_differences():
            summed = {name: self._bases[name].float() + value for name, value in summed.items()}
        decoded_mean = model_of(summed)
        divergences = {} if self._directions is None else self._directions.divergences(decoded_mean)
        mean = server.link.combine(decoded_mean, self.received)
        share = total_weight / (server.total_examples or total_weight)
        gathered = Gathered(mean, server.parameter_names, beside_of(summed), share)
        state = server.aggregator.step(self._current, gathered)
        _check_fixed(server, self._current, state)
        return Aggregated(state, total_weight, num_updates, self._refused, divergences, usual_norms)

    def _add(self, client_id: ClientId, update: PackedState, num_examples: int) -> None:
        """Transform an update that has passed all checks, and add it up."""
        server = self._server
        if not server.transforms and self._directions is None and not self._takes_differences():
            self._sum.add(update, num_examples)  # from payload to sum in one pass
        else:
            state = decoded(update)
            if self._takes_differences():
                state = {name: value - self._bases[name] for name, value in state.items()}
            for transform in server.transforms:
                state = transform(client_id, state)
            self._sum.add(state, num_examples)
            if self._directions is not None:
                self._directions.add(client_id, state)
        self._num_added += 1

    def _empty_sum(self) -> Accumulator:
        server = self._server
        if server.noisy_sum is not None:
            return server.noisy_sum(self.number)
        return server.accumulator(self._bases if self._is_model else None)

    def _takes_differences(self) -> bool:
        """Whether what clients sent as a model is added up as a difference."""
        return self._is_model and self._server.noisy_sum is not None

    def _is_usual(self, norms: Norms, ratio: float) -> bool:
        usual = self._usual_norms
        return usual is not None and all(norm <= ratio * most for norm, most in zip(norms, usual, strict=True))

    @contextmanager
    def _refusing(self, client_id: ClientId) -> Iterator[None]:
        """Leave out a client whose update fails a check; what is no fault of its own goes on."""
        try:
            yield
        except ConfigurationError:
            raise
        except ValueError as error:
            self._refused[client_id] = shortened(str(error))


def _check_fixed(server: Server, before: StateDict, after: StateDict) -> None:
    """Refuse a step that changed what clients have from their first round on."""
    for name in server.link.fixed_names:
        if after[name] is not before[name] and not same_values(after[name], before[name]):
            raise ConfigurationError(
                f"{type(server.aggregator).__name__}.step changed {name}, which no client sends and which goes down "
                "once to a client; a step leaves alone what the mean lacks"
            )
