"""The round: plan, fit, aggregate, observe."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning import tracking
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import setup
from fedhq_lightning.federated.client_fit import Update
from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.federated.payload import PayloadError
from fedhq_lightning.federated.update_directions import UpdateDirections, sketcher_of
from fedhq_lightning.risk.update_sketch import Sketcher
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import MODES, Plan, StateDict

if TYPE_CHECKING:
    from fedhq_lightning.trainer import FederatedTrainer

_KEPT_CHECKPOINTS = 2


class RoundLoop:
    """Runs the rounds of one run on this process; every process runs the same loop over its share of each cohort.

    Args:
        trainer: Settings and callbacks.
        job: Checked inputs.
        processes: The others.
        directory: Written by process 0 only.
        state: Where the run stands.
        loggers: Process 0's; empty elsewhere.
        described: Settings, kept in each checkpoint.
    """

    def __init__(
        self,
        trainer: FederatedTrainer,
        job: setup.Job,
        processes: Processes,
        directory: RunDirectory,
        state: RunState,
        loggers: list[tracking.TrackedLogger],
        described: Mapping[str, Any],
    ) -> None:
        self.job = job
        self.directory = directory
        self.state = state
        self.evaluator = setup.evaluator_of(trainer, job.template, processes)
        self._fitter = setup.fitter_of(trainer, job)
        self._trainer = trainer
        self._processes = processes
        self._loggers = loggers
        self._described = described
        self._received: StateDict = {}
        self._sketcher = sketcher_of(trainer.seed) if job.allocator.wants_update_divergence else None
        self._warned_of_sensitivity = False

    def run(self) -> None:
        """All rounds that are still to be done; before the first, an evaluation that counts as round 0."""
        trainer, state = self._trainer, self.state
        if not state.records:
            self._observe(0, Plan({}), [], _Stopwatch())
        while state.round < trainer.max_rounds and not trainer.should_stop:
            round_number, watch = state.round + 1, _Stopwatch()
            plan = self._plan(round_number, watch)
            updates = self._fit(round_number, plan, watch)  # one at a time, as they are aggregated
            clients = self._aggregate(round_number, updates)
            self._observe(round_number, plan, clients, watch)

    def _plan(self, round_number: int, watch: _Stopwatch) -> Plan:
        cohort = self.job.sampler.cohort(round_number, self.state.virtual_seconds)
        with watch.measure("allocator"):
            plan = self.job.allocator.propose(round_number, cohort)
        if set(plan.modes) != set(cohort):
            raise ConfigurationError(
                f"{type(self.job.allocator).__name__} planned {len(plan.modes)} clients for a cohort of {len(cohort)}; "
                "a plan names every client of the cohort and no other"
            )
        for mode in plan.modes.values():
            if mode not in MODES:
                raise ConfigurationError(
                    f"{type(self.job.allocator).__name__} planned mode {mode!r}: must be one of {', '.join(MODES)}"
                )
        self._trainer.call("on_round_start", round_number, plan)
        return plan

    def _fit(self, round_number: int, plan: Plan, watch: _Stopwatch) -> Iterator[Update]:
        """Train this process's share of the cohort, one client after another."""
        trainer = self._trainer
        self._received, downlink_bytes = self.job.link.down(self.state.global_state, round_number)
        scale = learning_rate_scale(trainer.round_lr, round_number, trainer.max_rounds)
        cohort = list(plan.modes)
        work = [float(self.job.datamodule.num_examples(client_id)) for client_id in cohort]
        for client_id in self._processes.share(cohort, work):
            trainer.call("on_client_start", client_id, plan.modes[client_id])
            with watch.measure("fit"):
                update = self._fitter.fit(
                    round_number,
                    client_id,
                    plan.modes[client_id],
                    self._received,
                    downlink_bytes,
                    scale,
                    trainer.round_deadline,
                )
            trainer.call("on_client_end", update.record)
            yield update

    def _aggregate(self, round_number: int, updates: Iterable[Update]) -> list[ClientRecord]:
        """Check, decode and add up this process's updates, reduce, step; every client's record, in fixed order."""
        accumulated, records = ExactMean(), list[ClientRecord]()
        directions: UpdateDirections | None = None
        for update in updates:
            record = update.record
            if record.status == "ok":
                try:
                    received = self.job.link.receive(update.payload, round_number, record.client_id)
                    accumulated.add(received, record.num_examples)
                    if self._sketcher is not None:
                        directions = directions or self._directions(self._sketcher)
                        directions.add(record.client_id, received)
                except (PayloadError, ValueError) as error:
                    record = replace(record, status="quarantined", reason=str(error))
            records.append(record)
        total = self._processes.reduce(accumulated)
        if total.total_weight:
            decoded_mean = total.mean()
            if directions is not None:
                found = directions.divergences(decoded_mean)
                records = [replace(record, update_divergence=found.get(record.client_id)) for record in records]
            mean = self.job.link.combine(decoded_mean, self._received)
            step = self._trainer.aggregator.step
            self.state.global_state = step(self.state.global_state, mean, self.job.parameter_names)
        else:
            rank_zero_warn(f"round {round_number}: no usable update arrived; the global model stays as it is")
        if self._trainer.ema_decay is not None:
            self.state.average(self._trainer.ema_decay)
        parts = self._processes.gather([record.to_json() for record in records])
        everyone = [ClientRecord.from_json(record) for part in parts for record in part]
        self._warn_of_sensitivity(everyone)
        for record in everyone:
            if record.status == "quarantined":
                rank_zero_warn(f"round {round_number}: client {record.client_id} is quarantined: {record.reason}")
        return sorted(everyone, key=lambda record: self.job.clock.position(record.client_id))

    def _directions(self, sketcher: Sketcher) -> UpdateDirections:
        job = self.job
        return UpdateDirections(job.link.uplink, sketcher, job.parameter_names, self._received)

    def _warn_of_sensitivity(self, records: Sequence[ClientRecord]) -> None:
        """Once a run: that clients measured a sensitivity, and it is no number."""
        wanted = self.job.allocator.wanted_sensitivity
        if wanted is None or self._warned_of_sensitivity:
            return
        unmeasured = [
            str(record.client_id) for record in records if record.status != "late" and record.sensitivity is None
        ]
        if unmeasured:
            self._warned_of_sensitivity = True
            rank_zero_warn(
                f"round {records[0].round}: the sensitivity ({wanted}) of {len(unmeasured)} clients is not finite, "
                f"so the allocator goes without: {', '.join(unmeasured[:5])} (said once a run)"
            )

    def _observe(self, round_number: int, plan: Plan, clients: list[ClientRecord], watch: _Stopwatch) -> None:
        trainer, state = self._trainer, self.state
        last = round_number == trainer.max_rounds
        metrics = train_metrics(clients)
        if self.job.validation_loaders and (round_number % trainer.eval_every_n_rounds == 0 or last):
            metrics |= self.evaluator.evaluate(state.served, self.job.validation_loaders)
        record = self._record(round_number, metrics, plan, clients, watch)
        if round_number > 0:
            with watch.measure("allocator"):
                self.job.allocator.observe(record)
            # Its time is complete only now, and what it plans may not depend on it.
            record = replace(record, allocator_seconds=self._processes.broadcast(watch.seconds["allocator"]))
        state.round = round_number
        state.records.append(replace(record, clients=()))
        is_best = round_number > 0 and state.is_better(record.monitored, str(trainer.monitor_mode))
        if is_best:
            state.keep_as_best(record.monitored)
        trainer.call("on_round_end", record)
        state.stopped = trainer.should_stop
        self._processes.from_first(lambda: self._write(record, is_best, last or state.stopped))

    def _write(self, record: RoundRecord, is_best: bool, is_end: bool) -> None:
        state = self.state
        if is_best:
            self.directory.save_best({"round": state.round, "state": state.deployed})
        self.directory.append_round(record)
        self.directory.write_metrics(state.records)
        if state.round > 0:
            self.job.allocator.write(self.directory.path)
        tracking.log_round(self._loggers, record)
        if state.round % self._trainer.checkpoint_every_n_rounds == 0 or is_end:
            self.directory.save_checkpoint(state.round, self._checkpoint(), _KEPT_CHECKPOINTS)

    def _record(
        self,
        round_number: int,
        metrics: dict[str, float],
        plan: Plan,
        clients: list[ClientRecord],
        watch: _Stopwatch,
    ) -> RoundRecord:
        """What happened, with wall times as process 0 measured them, so that every process holds the same record."""
        monitor, deadline = self._trainer.monitor, self._trainer.round_deadline
        virtual = max((client.virtual_seconds for client in clients), default=0.0)
        if deadline is not None:
            virtual = min(virtual, deadline)
        # The clients' round, and with it the deadline, begins when the first of them is there.
        wait = self.job.sampler.wait_seconds(self.state.virtual_seconds) if round_number else 0.0
        virtual += wait
        wall, fit, allocator = self._processes.broadcast(
            [watch.total(), watch.seconds["fit"], watch.seconds["allocator"]]
        )
        is_trained_on = monitor is not None and not self.job.probe.validation_names
        return RoundRecord(
            round=round_number,
            metrics=metrics,
            metric_fp=metrics.get(f"{'train' if is_trained_on else 'fp'}/{monitor}"),
            metric_quantized=metrics.get(f"quantized/{monitor}"),
            wall_seconds=wall,
            fit_wall_seconds=fit,
            allocator_seconds=allocator,
            virtual_seconds=virtual,
            total_wall_seconds=self.state.wall_seconds + wall,
            total_virtual_seconds=self.state.virtual_seconds + virtual,
            uplink_bytes=sum(client.uplink_bytes for client in clients),
            downlink_bytes=sum(client.downlink_bytes for client in clients),
            mode_counts=plan.counts(),
            quarantined=sum(client.status == "quarantined" for client in clients),
            late=sum(client.status == "late" for client in clients),
            clients=tuple(clients),
            reason=plan.reason,
            allocation=dict(plan.logged),
            wait_seconds=wait,
        )

    def _checkpoint(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "format_version": 1,
            "described": dict(self._described),
            "state": self.state.to_checkpoint(),
            "aggregator": trainer.aggregator.state_dict(),
            "allocator": self.job.allocator.state_dict(),
            "callbacks": {callback.state_key: callback.state_dict() for callback in trainer.callbacks},
        }


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


def learning_rate_scale(round_lr: str | float, round_number: int, max_rounds: int) -> float:
    """Factor on every learning rate in a round.

    Args:
        round_lr: "constant"; "cosine" or "linear" from 1 towards 0 over the run; or a factor per round.
        round_number: From 1.
        max_rounds: Rounds in all.
    """
    done = (round_number - 1) / max_rounds
    if round_lr == "constant":
        return 1.0
    if round_lr == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if round_lr == "linear":
        return 1 - done
    return float(round_lr) ** (round_number - 1)


class _Stopwatch:
    """Wall seconds since it was made, and of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"fit": 0.0, "allocator": 0.0}
        self._started = time.perf_counter()

    def total(self) -> float:
        return time.perf_counter() - self._started

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started
