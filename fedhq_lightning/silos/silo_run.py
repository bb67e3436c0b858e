"""A federation of silos from its first round to its last: plans, exchanges, records."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.drop_in.deployed_statistics import DeployedStatistics
from fedhq_lightning.drop_in.trainer_parts import callbacks_of, is_rehearsal
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.payload import Header, encode
from fedhq_lightning.federated.server import Aggregated
from fedhq_lightning.federated.statistics_round import MEAN, Retaken, pooled, under_all_names
from fedhq_lightning.federated.wire import warn_of_lost_changes
from fedhq_lightning.local.batch_statistics import tracked_layers
from fedhq_lightning.run.logged_rows import logged_values
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.silos.first_weights import share_first_weights
from fedhq_lightning.silos.local_work import LocalWork
from fedhq_lightning.silos.silo_context import (
    SiloProbe,
    clock_of,
    context_of,
    gather_facts,
    own_facts,
    warn_of_same_data,
)
from fedhq_lightning.silos.silo_exchange import SiloExchange
from fedhq_lightning.silos.silo_logs import SiloLogs
from fedhq_lightning.silos.silo_monitors import watched_metric
from fedhq_lightning.silos.silo_rounds import (
    SiloRound,
    Work,
    forget_what_is_not_finite,
    frozen_names,
    put,
    snapshot,
    with_ties,
)
from fedhq_lightning.silos.silo_settings import SiloSettings
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.tensors import same_values
from fedhq_lightning.support.views import deployed_statistics, float_view
from fedhq_lightning.types import MODES, Mode, MonitorMode, Plan, StateDict

_IDLE = "no batch was trained on, as when on_train_batch_start returns -1 or training_step None"


class SiloRun:
    """Where a run of silos stands; the same on every rank but for what is this silo's own.

    Args:
        settings: What was asked for.
        trainer: Its loaders are set up.
        pl_module: Plain.
        folder: For the records that rank 0 writes.
        state: What `state_dict` gave, or empty.
        extras: This silo's part of a checkpoint within a round.
        statistics: Is told the batch statistics of the deployed model.

    Raises:
        ConfigurationError: The silos do not fit together, or the allocator or the fleet does not fit them.
    """

    def __init__(
        self,
        settings: SiloSettings,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        folder: Path,
        state: dict[str, Any],
        extras: dict[str, Any] | None,
        statistics: DeployedStatistics,
    ) -> None:
        self._statistics = statistics
        self.processes = Processes(pl_module.device)
        self.round_number: int = state.get("round", 0)
        self.epochs_in_round: int = state.get("epochs_in_round", 0)
        self.seed: int = state["seed"] if "seed" in state else self.processes.broadcast(torch.initial_seed())
        self.plan = Plan(**state["plan"]) if "plan" in state else Plan({})
        self._seconds: dict[str, float] = dict(state.get("seconds", {"wall": 0.0, "virtual": 0.0}))
        self._settings = settings
        self._aggregator = settings.aggregator
        self._aggregator.load_state_dict(state.get("aggregator", {}))
        if not extras:
            share_first_weights(pl_module, self.processes)
        scheme = settings.scheme
        self._grids = {} if scheme is None else {f"{k}.weight": v for k, v in scheme.for_layers(pl_module).items()}
        warn_of_lost_changes(settings.uplink, self._grids)
        received = with_ties(pl_module, extras["received"]) if extras else snapshot(pl_module)
        self.round = SiloRound(self.round_number + 1, received, frozen_names(pl_module), self._grids, settings.uplink)
        self._pending: RoundRecord | None = None
        self._warned_of_idle = False
        self._logs = SiloLogs(None if is_rehearsal(trainer) else folder, trainer.is_global_zero)
        self._logs.rewind(self.round_number)
        self._monitor, mode = watched_metric(trainer)
        self._probe = SiloProbe(trainer, pl_module, scheme, settings.lanes)
        self._exchange = SiloExchange(settings, self.processes, self.seed, state.get("usual_norms"))
        self._begin(trainer, pl_module, mode)

    @property
    def mode(self) -> Mode:
        """The mode in which this silo trains in the current round."""
        return self.plan.modes[self.processes.rank]

    @property
    def agreed_state_keys(self) -> list[str]:
        """Of callbacks that have the same state on every silo."""
        key = getattr(self._allocator, "state_key", None)
        return [] if key is None else [key]

    def state_dict(self) -> dict[str, Any]:
        """Plain values, and the aggregator's state."""
        plan = {"modes": dict(self.plan.modes), "reason": self.plan.reason, "logged": dict(self.plan.logged)}
        return {
            "round": self.round_number,
            "epochs_in_round": self.epochs_in_round,
            "seed": self.seed,
            "plan": plan,
            "seconds": dict(self._seconds),
            "usual_norms": self._exchange.usual_norms,
            "aggregator": self._aggregator.state_dict(),
        }

    def begin_round(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> LocalWork:
        """Plan the next round, from the global model that the module holds now."""
        number, local = self.round_number + 1, LocalWork()
        started = time.perf_counter()
        ranks = range(self.processes.count)
        if self._allocator is None:
            self.plan = Plan(dict.fromkeys(ranks, "fp"), "without an allocator every silo trains in fp")
        else:
            self.plan = self._allocator.propose(number, ranks)
        if set(self.plan.modes) != set(ranks) or not set(self.plan.modes.values()) <= set(MODES):
            raise ConfigurationError(
                f"{type(self._allocator).__name__} planned {dict(self.plan.modes)}; a plan names every silo, 0 to "
                f"{self.processes.count - 1}, and no other, with one of {', '.join(MODES)}"
            )
        if self.plan.work:
            raise ConfigurationError(
                f"{type(self._allocator).__name__} planned shares of the local steps, but a silo trains all batches of "
                "its epochs; take another allocator, or one without a limit of time, as LateQatAllocator(budget=inf)"
            )
        if self.plan.lr_factors:
            raise ConfigurationError(
                f"{type(self._allocator).__name__} planned factors of learning rates, but a silo's optimizers and "
                "schedulers are its own; leave lr_factor at 1"
            )
        local.allocator_seconds = time.perf_counter() - started
        settings = self._settings
        self.round = SiloRound(number, snapshot(pl_module), frozen_names(pl_module), self._grids, settings.uplink)
        wanted = None if self._allocator is None else self._allocator.wanted_sensitivity
        if wanted is not None:
            local.sensitivity = self._probe.sensitivity(wanted)
        return local

    def end_epoch(self, trainer: pl.Trainer, validates: bool) -> bool:
        """Agree on stopping, and on whether the round is over.

        Args:
            trainer: May be told to stop by another silo.
            validates: Whether this silo is about to validate.

        Raises:
            ConfigurationError: Some silos validate and others do not.
        """
        self.epochs_in_round += 1
        said = self.processes.gather([bool(trainer.should_stop), validates, trainer.global_step])
        if len({validates for _, validates, _ in said}) > 1:
            silent = ", ".join(str(rank) for rank, (_, validates, _) in enumerate(said) if not validates)
            raise ConfigurationError(
                f"silo {silent} goes on without validating after this epoch while others validate, as after an "
                "on_train_batch_start that returned -1; let every silo do the same"
            )
        trainer.should_stop = any(stops for stops, _, _ in said)
        # ModelCheckpoint writes it into names of files, which have to be the same on every silo.
        trainer.callback_metrics["step"] = torch.tensor(said[0][2])
        is_last = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
        ends = trainer.should_stop and trainer.fit_loop._can_stop_early
        return is_last or ends or self.epochs_in_round >= self._settings.every_n_epochs

    def end_round(self, trainer: pl.Trainer, pl_module: pl.LightningModule, local: LocalWork) -> None:
        """Exchange and aggregate: afterwards the module holds the global model."""
        rank, started = self.processes.rank, time.perf_counter()
        mine = replace(local.work(needs_loss=pl_module.automatic_optimization), changed=self.round.changed(pl_module))
        work = [Work(**each) for each in self.processes.gather(asdict(mine))]
        self.round.agree(work)
        payloads, found = self._exchange.run(self.round, pl_module, work, self._allocator)
        put(pl_module, found.state)
        retaken = self._retake(pl_module, found, work)
        if rank in found.refused:
            forget_what_is_not_finite(trainer.optimizers)
        exchanged = self.processes.broadcast(time.perf_counter() - started)
        self.round_number, self.epochs_in_round = self.round.number, 0
        self._pending = self._record(payloads, work, found, exchanged, retaken)
        self._warn(found, self._pending)
        values = {f"fedhq/{name}": value for name, value in logged_values(self._pending).items()}
        values |= {f"fedhq/silo_{each}/mode": float(MODES.index(mode)) for each, mode in self.plan.modes.items()}
        trainer.callback_metrics.update(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        )
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _retake(self, pl_module: pl.LightningModule, found: Aggregated, work: Sequence[Work]) -> Retaken:
        """Give both views of the global model batch statistics of their own, by one batch of every silo that took part.

        Where a step outside the Trainer fails, as told before round 1, the averages of the running ones stay.
        """
        rank, before = self.processes.rank, self.round.received
        # Those of a layer that is frozen do not move.
        layers = {
            name: others
            for name, others in tracked_layers(pl_module).items()
            if not same_values(found.state[f"{name}.{MEAN}"], before[f"{name}.{MEAN}"])
        }
        if not layers or self._problem or not self._settings.retake_batch_statistics:
            return Retaken({})
        mine = None if work[rank].is_idle else self._probe.moments(list(layers))
        received = {} if mine is None else {rank: mine}
        taken = under_all_names(pooled(received, {rank: work[rank].num_examples}, self.processes), layers)
        put(pl_module, float_view(taken))
        self._statistics.keep(pl_module, deployed_statistics(taken))
        sizes = self.processes.gather(0 if mine is None else len(encode(mine, {}, Header("statistics", 0, rank))))
        return self._cost(taken, sizes)

    def _cost(self, statistics: StateDict, sizes: Sequence[int]) -> Retaken:
        """What it took: every silo has the model, runs it in both views, and sends the others what it found."""
        modes: list[Mode] = ["fp"] if self._settings.scheme is None else ["fp", "qat"]
        clock = self._clock
        seconds = [
            sum(clock.forward_seconds(rank, mode) for mode in modes) + clock.upload_seconds(rank, size)
            for rank, size in enumerate(sizes)
            if size and clock is not None
        ]
        return Retaken(statistics, max(seconds, default=0.0), sum(sizes), sum(sizes) * (len(sizes) - 1))

    def observe(self, trainer: pl.Trainer, evaluated: Mapping[str, torch.Tensor]) -> None:
        """Tell the allocator of a round that has ended, and keep its record.

        Args:
            trainer: Tells the monitored value where the round was not evaluated.
            evaluated: What validation logged on the global model; those of rank 0 count.
        """
        record, self._pending = self._pending, None
        if record is None:
            return
        monitor = self._monitor
        if not evaluated and monitor in trainer.callback_metrics:
            evaluated = {str(monitor): trainer.callback_metrics[str(monitor)]}
        mine = {
            (name if name.startswith("quantized/") else f"fp/{name}"): float(value)
            for name, value in evaluated.items()
            if value.numel() == 1
        }
        # What a module logs on some silos only must not let their allocators plan differently.
        metrics = {name: float(value) for name, value in self.processes.broadcast(mine).items()}
        record = replace(
            record,
            metrics={**record.metrics, **metrics},
            metric_fp=metrics.get(f"fp/{monitor}"),
            metric_quantized=metrics.get(f"quantized/{monitor}"),
        )
        if self._allocator is not None:
            self._allocator.observe(record)
        self._logs.write(record, self._allocator)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule, monitor_mode: MonitorMode) -> None:
        """Exchange what the silos tell of themselves, and begin the allocator with it."""
        settings = self._settings
        self._allocator = next((each for each in callbacks_of(trainer) if isinstance(each, Allocator)), None)
        allocator = self._allocator
        wanted = None if allocator is None else allocator.wanted_sensitivity
        measures = [] if allocator is None else list(dict.fromkeys(["sqnr", *([wanted] if wanted else [])]))
        tells_labels = allocator is not None and allocator.wants_label_divergence
        facts = gather_facts(self.processes, own_facts(trainer, self._probe, self._grids, measures, tells_labels))
        warn_of_same_data(facts)
        self._exchange.begin(facts)
        size = len(self.round.encode(pl_module, self.processes.rank))
        self._clock = clock_of(
            facts,
            settings.fleet,
            self.seed,
            trainer,
            pl_module,
            settings.every_n_epochs,
            size,
            self._grids,
            settings.lanes,
        )
        problem = max(facts, key=lambda each: each.batch_size).problem
        self._problem = next((each.problem for each in facts if each.problem), "")
        if self._allocator is None:
            if problem:
                rank_zero_warn(
                    "FederatedAveraging: no virtual seconds, since training_step did not run on a copy of the module "
                    f"({problem})"
                )
            return
        if self._clock is None:
            raise ConfigurationError(
                f"{type(self._allocator).__name__} needs predicted times, for which training_step runs once on a copy "
                f"of the module, and there it fails ({problem}); mend that, or leave the allocator out to train in fp"
            )
        resumes = bool(getattr(self._allocator, "is_resumed", False))
        self._allocator.begin(
            context_of(facts, self._clock, self.seed, trainer, settings.every_n_epochs, monitor_mode, resumes)
        )
        name = type(self._allocator).__name__
        if explanation := getattr(self._allocator, "explanation", ""):
            rank_zero_info(f"{name}: {explanation}")
        if self._monitor is None and getattr(self._allocator, "fine", False):
            rank_zero_warn(
                f"{name}: nothing is monitored, so it keeps the boundary chosen before round 1; add "
                "ModelCheckpoint(monitor='quantized/NAME') with a metric that validation logs, or say fine=False"
            )

    def _record(
        self, payloads: list[bytes], work: list[Work], found: Aggregated, exchanged: float, retaken: Retaken
    ) -> RoundRecord:
        clients = [self._client(rank, payloads, work[rank], found) for rank in range(self.processes.count)]
        kept = [
            (each.loss, each.num_examples)
            for rank, each in enumerate(work)
            if rank not in found.refused and not each.is_idle and each.loss is not None
        ]
        loss = sum(loss * count for loss, count in kept) / sum(count for _, count in kept) if kept else None
        record = RoundRecord.of_clients(
            self.round_number,
            self.plan,
            clients,
            {} if loss is None else {"train/loss": loss},
            (self._seconds["wall"], self._seconds["virtual"]),
            wall_seconds=max(each.wall_seconds for each in work) + exchanged,
            fit_wall_seconds=max(each.wall_seconds for each in work),
            allocator_seconds=work[0].allocator_seconds,
            virtual_seconds=max(client.virtual_seconds for client in clients) + retaken.virtual_seconds,
            statistics_seconds=retaken.virtual_seconds,
            statistics_uplink_bytes=retaken.uplink_bytes,
            statistics_downlink_bytes=retaken.downlink_bytes,
        )
        self._seconds = {"wall": record.total_wall_seconds, "virtual": record.total_virtual_seconds}
        return record

    def _client(self, rank: int, payloads: list[bytes], work: Work, found: Aggregated) -> ClientRecord:
        mode, clock = self.plan.modes[rank], self._clock
        times = None if clock is None else clock.time(rank, mode)
        if times is not None and work.is_idle:
            times = replace(times, compute_seconds=0.0, upload_seconds=0.0)
        measured = work.sensitivity is not None and clock is not None
        return ClientRecord(
            round=self.round_number,
            client_id=rank,
            tier="unknown" if clock is None else clock.tier(rank),
            mode=mode,
            status="idle" if work.is_idle else "quarantined" if rank in found.refused else "ok",
            num_examples=work.num_examples,
            num_steps=work.num_steps,
            metrics={} if work.loss is None else {"loss": work.loss},
            fit_wall_seconds=work.wall_seconds,
            download_seconds=0.0 if times is None else times.download_seconds,
            compute_seconds=0.0 if times is None else times.compute_seconds,
            upload_seconds=0.0 if times is None else times.upload_seconds,
            uplink_bytes=len(payloads[rank]),
            downlink_bytes=sum(len(each) for other, each in enumerate(payloads) if other != rank),
            reason=_IDLE if work.is_idle else found.refused.get(rank, ""),
            analysis_seconds=clock.analysis_seconds(rank) if measured and clock is not None else 0.0,
            sensitivity=work.sensitivity,
            update_divergence=found.divergences.get(rank),
        )

    def _warn(self, found: Aggregated, record: RoundRecord) -> None:
        for rank, reason in found.refused.items():
            rank_zero_warn(f"round {record.round}: silo {rank} is quarantined: {reason}")
        idle = [str(client.client_id) for client in record.clients if client.status == "idle"]
        if idle and not self._warned_of_idle:
            self._warned_of_idle = True
            rank_zero_warn(
                f"round {record.round}: {len(idle)} of {len(record.clients)} silos took no step, so they send nothing "
                f"and count nothing: {', '.join(idle)} ({_IDLE}; said once a run)"
            )
        if not found.total_weight:
            rank_zero_warn(f"round {record.round}: no usable update arrived; the global model stays as it is")
