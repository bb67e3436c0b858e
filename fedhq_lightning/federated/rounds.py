"""The round: plan, fit, aggregate, observe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.errors import RunError
from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator
from fedhq_lightning.federated.asynchronous.flight import Flight
from fedhq_lightning.federated.callback import RoundControl
from fedhq_lightning.federated.client_fit import Update
from fedhq_lightning.federated.client_warnings import ClientWarnings
from fedhq_lightning.federated.cohort_fit import ClientTask
from fedhq_lightning.federated.failing_clients import after_round, check_fruitful, check_has_model, sitting_out
from fedhq_lightning.federated.fewest_updates import too_few
from fedhq_lightning.federated.parts import ClientParts
from fedhq_lightning.federated.plan_checks import check_plan
from fedhq_lightning.federated.resume import best_checkpoint
from fedhq_lightning.federated.round_lr import learning_rate_scale
from fedhq_lightning.federated.sampling import share_of
from fedhq_lightning.federated.server import Aggregated, Server, ServerRound
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.federated.setup import Job
from fedhq_lightning.federated.statistics_round import Retaken
from fedhq_lightning.federated.update_checks import NOT_FINITE, Norms
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.evaluated_clients import ClientsEvaluation
from fedhq_lightning.run.lightning_checkpoint import for_lightning
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.notes import noted
from fedhq_lightning.support.phase_clock import PhaseClock
from fedhq_lightning.support.text import shortened
from fedhq_lightning.support.views import float_view
from fedhq_lightning.types import ClientId, Plan

if TYPE_CHECKING:  # they need the package cryptography
    from fedhq_lightning.federated.secure.secure_round import SecureRound, SecureRounds


class RoundLoop:
    """Runs the rounds of one run on this process; every process runs the same loop over its share of each cohort.

    Args:
        settings: What was asked for.
        control: Told of what happens; may end the run.
        job: Checked inputs.
        clients: What clients do, here or elsewhere.
        evaluator: Evaluates global models.
        server: Makes the next global model.
        processes: The others.
        directory: Written by process 0 only.
        state: Where the run stands.
        clock: Of the run.
        saved_parts: What a checkpoint holds of others: the run's description, and the callbacks' states.
        secure: Opens secure rounds; None where the server sees every update.
    """

    def __init__(
        self,
        settings: RunSettings,
        control: RoundControl,
        job: Job,
        clients: ClientParts,
        evaluator: Evaluator,
        server: Server,
        processes: Processes,
        directory: RunDirectory,
        state: RunState,
        clock: PhaseClock,
        saved_parts: Callable[[], dict[str, Any]],
        secure: SecureRounds | None = None,
    ) -> None:
        self._settings = settings
        self._control = control
        self._job = job
        self._clients = clients
        self._evaluator = evaluator
        self._flight: Flight | None = None
        if isinstance(settings.aggregator, AsynchronousAggregator):
            self._flight = Flight(settings.aggregator, job.clock, state, directory.in_flight, processes)
        self._server = server if self._flight is None else self._flight.weighing(server)
        self._processes = processes
        self._directory = directory
        self._state = state
        directory.client_store.best_rounds = state.best_rounds
        self._clock = clock
        self._saved_parts = saved_parts
        self._secure = secure
        self._warnings = ClientWarnings(job.allocator.wanted_sensitivity, settings.sit_out_rounds)

    def run(self) -> None:
        """All rounds that are still to be done; before the first, an evaluation that counts as round 0."""
        state, control, clients = self._state, self._control, list[ClientRecord]()
        min_updates, num_clients = self._job.min_updates, len(self._job.sampler.with_data())
        if not state.records:
            self._processes.from_first(lambda: self._directory.write_inputs(self._job.datamodule.model_inputs()))
            self._observe(0, Plan({}), [], self._clock.read())
        while not (self._is_last(state.round) or control.should_stop):
            before = self._clock.read()
            usual = None if state.usual_norms is None else Norms(*state.usual_norms)
            plan = self._plan(state.round + 1)
            secure = None
            if self._secure is not None:
                secure = self._secure.open(state.round + 1, list(plan.modes), self._mine(plan))
            at_server = self._server.open_round(state.round + 1, float_view(state.global_state), usual, secure)
            updates = self._fit(at_server, plan, secure)  # one at a time, as they are aggregated
            if self._flight is not None:
                updates = self._flight.first(at_server, updates)
            clients = self._aggregate(at_server, updates, secure)
            if self._flight is not None:
                plan = self._flight.plan(plan, clients)
            self._observe(at_server.number, plan, clients, before)
            if control.should_stop and not state.stopped:  # set when the round was saved already
                state.stopped = True
                self._retake(at_server.number, clients)
                self._processes.from_first(self._save_checkpoint)
            check_fruitful(state.records, clients, min_updates, num_clients)
        self._job.ledger.tell_of_end(state.round, self._settings.max_rounds, state.private_steps)
        check_has_model(state.records, clients, min_updates)

    def _plan(self, round_number: int) -> Plan:
        state = self._state
        without = sitting_out(state.offences, round_number)
        busy = frozenset() if self._flight is None else self._flight.positions()
        drawn = self._job.sampler.cohort(round_number, state.virtual_seconds, without, busy)
        cohort = self._job.ledger.allowed(drawn, state.private_steps)
        allocator = self._job.allocator
        with self._clock.phase("allocate"):
            plan = allocator.propose(round_number, cohort)
        check_plan(plan, cohort, type(allocator).__name__)
        self._control.call("on_round_start", round_number, plan)
        return plan

    def _mine(self, plan: Plan) -> list[ClientId]:
        """This process's share of the cohort."""
        cohort = list(plan.modes)
        return share_of(self._processes, cohort, [float(self._job.clock.num_examples(each)) for each in cohort])

    def _fit(self, at_server: ServerRound, plan: Plan, secure: SecureRound | None) -> Iterator[Update]:
        """Have this process's share of the cohort train."""
        settings, control, cohort = self._settings, self._control, list(plan.modes)
        scale = learning_rate_scale(settings.round_lr, at_server.number, settings.max_rounds)
        newcomers = self._newcomers(cohort)
        tasks = [
            ClientTask(
                client_id,
                mode := plan.modes[client_id],
                scale * settings.mode_lr.get(mode, 1.0) * plan.lr_factors.get(mode, 1.0),
                client_id in newcomers,
                plan.work.get(client_id, 1.0),
            )
            for client_id in self._mine(plan)
        ]
        for update in self._clients.fit.updates(at_server, tasks, control, self._clock):
            if self._job.measured is not None:
                update = replace(update, record=self._job.measured.put_into(update.record))
            if secure is not None:
                update = secure.masked(update, at_server.received, self._explained)
            control.call("on_client_end", update.record)
            yield update

    def _newcomers(self, cohort: Sequence[ClientId]) -> frozenset[ClientId]:
        """Clients of the cohort that what no round changes goes down to, where there is any of it.

        Late, idle and quarantined ones have it from then on too.
        """
        if not self._job.link.fixed_bytes:
            return frozenset()
        are_new = self._state.reach([self._job.clock.position(client_id) for client_id in cohort])
        return frozenset(client_id for client_id, is_new in zip(cohort, are_new, strict=True) if is_new)

    def _aggregate(
        self, at_server: ServerRound, updates: Iterable[Update], secure: SecureRound | None
    ) -> list[ClientRecord]:
        """Give the server this process's updates, and step; every client's record, in fixed order."""
        state, settings, number = self._state, self._settings, at_server.number
        with self._clock.phase("aggregate"):
            records = [_received(at_server, update) for update in updates]
            found = at_server.close()
        if secure is not None:
            records = [secure.charged(record) for record in records]
        everyone = self._everyones(records, found)
        if number == 1:
            self._check_first_round(everyone)
        state.global_state = state.global_state | found.state
        state.has_statistics = False
        state.usual_norms = found.usual_norms.parameters, found.usual_norms.buffers
        if settings.ema_decay is not None:
            state.average(settings.ema_decay)
        elif settings.average_from is not None and number >= settings.average_from:
            state.average(1 - 1 / (number - settings.average_from + 1))
        state.private_steps = self._job.ledger.spend(state.private_steps, everyone)
        placed = [(self._job.clock.position(record.client_id), record) for record in everyone]
        state.offences, sit_out = after_round(state.offences, placed, number, settings.sit_out_rounds)
        self._warnings.of_round(everyone, sit_out)
        if not found.total_weight:
            reason = too_few(found.num_updates, settings, self._job.min_updates)
            rank_zero_warn(f"round {number}: {reason}; the global model stays as it is")
        return everyone

    def _everyones(self, records: Sequence[ClientRecord], found: Aggregated) -> list[ClientRecord]:
        """The records of all processes' clients, with what the server found."""
        mine = [
            replace(record, status="quarantined", reason=self._explained(record, found.refused[record.client_id]))
            if record.client_id in found.refused
            else replace(record, update_divergence=found.divergences.get(record.client_id))
            for record in records
        ]
        parts = self._processes.gather([record.to_json() for record in mine])
        everyone = [ClientRecord.from_json(record) for part in parts for record in part]
        return sorted(everyone, key=lambda record: self._job.clock.position(record.client_id))

    def _explained(self, record: ClientRecord, reason: str) -> str:
        """Why the server refused an update, with what its client finds in its own data."""
        if reason != NOT_FINITE:
            return reason
        return shortened(f"{reason}: {self._clients.fit.why_not_finite(record.begun_in, record.client_id)}")

    def _check_first_round(self, records: Sequence[ClientRecord]) -> None:
        """End a run in whose first round every client failed: then the module is wrong, not a client."""
        error, self._clients.fit.first_error = self._clients.fit.first_error, None
        if len(records) > 1 and all(record.traceback for record in records):
            said = f"all {len(records)} clients failed in round 1"
            if error is None:  # on another process, or it was let go of
                raise RunError(f"{said}; client {records[0].client_id}: {records[0].reason}")
            error.add_note(said)
            raise error

    def _observe(self, round_number: int, plan: Plan, clients: list[ClientRecord], before: Mapping[str, float]) -> None:
        settings, control, state = self._settings, self._control, self._state
        last, is_watched = self._is_last(round_number), self._job.validation_loaders or self._job.probe.client_names
        is_evaluated = bool(is_watched) and (round_number % settings.eval_every_n_rounds == 0 or last)
        retaken = self._retake(round_number, clients) if is_evaluated or last else Retaken({})
        metrics = train_metrics(clients)
        if is_evaluated and self._job.validation_loaders:
            note = f"while the global model was evaluated, after round {round_number}"
            with self._clock.phase("evaluate"), noted(note):
                metrics |= self._evaluator.evaluate(state.served, self._job.validation_loaders)
        evaluation = None
        on_clients = self._clients.evaluation
        if on_clients is not None:
            with self._clock.phase("evaluate"):
                evaluation = on_clients.after_round(round_number, clients, state, is_evaluated)
            metrics |= on_clients.metrics(evaluation)
        record = self._record(round_number, metrics, plan, clients, before, retaken, evaluation)
        with self._clock.phase("allocate"):
            self._job.allocator.observe(record)
        # Its time is complete only now, and what it plans may not depend on it.
        allocator_seconds = self._processes.broadcast(self._clock.since(before).get("allocate", 0.0))
        record = replace(record, allocator_seconds=allocator_seconds)
        state.round = round_number
        state.records.append(record.without_clients())
        is_trained = any(each.round and each.usable >= self._job.min_updates for each in state.records)
        is_best = is_trained and state.is_better(record.monitored, self._job.monitored.mode)
        if is_best:
            state.keep_as_best(record.monitored)
        control.call("on_round_end", record)
        state.stopped = control.should_stop
        if state.stopped:
            self._retake(round_number, clients)
        with self._clock.phase("save"):
            self._processes.from_first(lambda: self._write(record, is_best, last or state.stopped))
        control.call("on_round_saved", record)

    def _is_last(self, round_number: int) -> bool:
        """Whether no round is to follow, or may."""
        is_over = self._job.ledger.is_over(round_number, self._state.private_steps)
        return is_over or round_number >= self._settings.max_rounds

    def _retake(self, round_number: int, clients: Sequence[ClientRecord]) -> Retaken:
        """Give the model that is served the statistics of its own, once a round, by the clients that made it."""
        state = self._state
        if self._clients.statistics is None or state.has_statistics or not clients:
            return Retaken({})
        aggregated = [client.client_id for client in clients if client.status == "ok"]
        with self._clock.phase("statistics"):
            found = self._clients.statistics.retake(round_number, state.served, aggregated)
        state.take_statistics(found.statistics)
        return found

    def _write(self, record: RoundRecord, is_best: bool, is_end: bool) -> None:
        state = self._state
        if is_best:
            self._directory.save_best(best_checkpoint(self._job.template, state))
        self._directory.append_round(record)
        self._directory.write_metrics(state.records)
        if state.round > 0:
            self._job.allocator.write(self._directory.path)
        if state.round % self._settings.checkpoint_every_n_rounds == 0 or is_end:
            self._save_checkpoint()

    def _record(
        self,
        round_number: int,
        metrics: dict[str, float],
        plan: Plan,
        clients: list[ClientRecord],
        before: Mapping[str, float],
        retaken: Retaken,
        evaluation: ClientsEvaluation | None,
    ) -> RoundRecord:
        """What happened, with wall times as process 0 measured them, so that every process holds the same record."""
        monitor, deadline = self._job.monitored.name, self._settings.round_deadline
        virtual = max((client.virtual_seconds for client in clients), default=0.0)
        if self._flight is not None:
            virtual = self._flight.round_seconds if round_number else 0.0
        if deadline is not None:
            virtual = min(virtual, deadline)
        # The clients' round, and with it the deadline, begins when the first of them is there.
        wait = self._job.sampler.wait_seconds(self._state.virtual_seconds) if round_number else 0.0
        virtual += wait + retaken.virtual_seconds
        spent = self._clock.since(before)
        wall, fit, allocator = self._processes.broadcast(
            [sum(spent.values()), spent.get("fit", 0.0), spent.get("allocate", 0.0)]
        )
        is_trained_on = monitor is not None and not self._job.probe.held_out_names
        return RoundRecord.of_clients(
            round_number,
            plan,
            clients,
            metrics,
            (self._state.wall_seconds, self._state.virtual_seconds),
            wall_seconds=wall,
            fit_wall_seconds=fit,
            allocator_seconds=allocator,
            virtual_seconds=virtual,
            metric_fp=metrics.get(f"{'train' if is_trained_on else 'fp'}/{monitor}"),
            metric_quantized=metrics.get(f"quantized/{monitor}"),
            wait_seconds=wait,
            statistics_seconds=retaken.virtual_seconds,
            statistics_uplink_bytes=retaken.uplink_bytes,
            statistics_downlink_bytes=retaken.downlink_bytes,
            epsilon=self._job.ledger.epsilon(
                *(round_number, self._state.epsilon, self._state.private_steps, clients),
            ),
            evaluation=evaluation,
        )

    def _save_checkpoint(self) -> None:
        parts = {
            "state": self._state.to_checkpoint(),
            "aggregator": self._settings.aggregator.state_dict(),
            "allocator": self._job.allocator.state_dict(),
            "evaluator": self._evaluator.state_dict(),
            "wall_phases": self._clock.read(),
            **self._saved_parts(),
            **for_lightning(self._job.template, self._state.served),
        }
        self._directory.save_checkpoint(self._state.round, parts)


def _received(at_server: ServerRound, update: Update) -> ClientRecord:
    """Give the server one update; its record, without the payload, which is as large as a model."""
    record = update.record
    if record.status == "ok":
        at_server.receive(record.client_id, update.payload, record.num_examples, sent_in=record.begun_in)
    return record


def train_metrics(clients: Sequence[ClientRecord]) -> dict[str, float]:
    """Means over the clients whose training was aggregated, weighted by examples, as `train/NAME`."""
    trained = [client for client in clients if client.num_steps and client.status == "ok"]
    names = dict.fromkeys(name for client in trained for name in client.metrics)
    result = {}
    for name in names:
        held = [client for client in trained if name in client.metrics]
        weight = sum(client.num_examples for client in held)
        result[f"train/{name}"] = math.fsum(client.metrics[name] * client.num_examples for client in held) / weight
    return result
