"""The server's side of clients on nodes: it asks them, and what comes back goes the way of any client's update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.federated import parts
from fedhq_lightning.federated.callback import RoundControl
from fedhq_lightning.federated.client_fit import Update, charged
from fedhq_lightning.federated.cohort_fit import ClientTask
from fedhq_lightning.federated.payload import Header, PayloadError, decode
from fedhq_lightning.federated.server import ServerRound
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.federated.setup import Job
from fedhq_lightning.federated.statistics_round import StatisticsRound, are_usable, statistics_names
from fedhq_lightning.flower.messages import Answer, Nodes, Order, Reply
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import ClientRecord, Status
from fedhq_lightning.run.run_names import RunName
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.phase_clock import PhaseClock
from fedhq_lightning.support.text import shortened
from fedhq_lightning.support.views import as_deployed, float_view
from fedhq_lightning.types import ClientId, StateDict

_MOST_FRAMES = 5


def clients_on(nodes: Nodes) -> parts.ClientPlace:
    """Makes the parts of a run whose clients are on nodes."""

    def make(
        settings: RunSettings,
        fabric: Fabric,
        job: Job,
        evaluator: Evaluator,
        processes: Processes,
        directory: RunDirectory,
    ) -> parts.ClientParts:
        if job.probe.client_names:
            raise ConfigurationError(
                "evaluate_clients: the clients hold examples back, and clients on nodes do not evaluate on them yet; "
                "set evaluate_clients to false"
            )
        run = _unique_name(directory) if parts.keep_state(settings, job) else ""
        nodes.join(job.datamodule.client_ids, job.sampler.with_data())
        statistics = None
        if parts.statistics_of(settings, job, evaluator, processes, None) is not None:
            statistics = RemoteStatistics(nodes, settings, job, evaluator, processes, run)
        return parts.ClientParts(RemoteFit(nodes, settings, job, directory, run), statistics, None)

    return make


class RemoteFit:
    """Has the clients of a cohort train on their nodes, all at once. See `CohortFit`.

    A client whose virtual time passes the deadline is late, and not asked. One whose answer does not come in time is
    late too. One that has no node, whose node goes away, or that sends no answer is quarantined, as one is whose code
    raises.

    Args:
        nodes: Where the clients are.
        settings: Of the run.
        job: Of the run.
        directory: Of the run, whose records tell which clients' updates came.
        run: See `Order`.
    """

    def __init__(self, nodes: Nodes, settings: RunSettings, job: Job, directory: RunDirectory, run: str) -> None:
        self._nodes = nodes
        self._settings = settings
        self._job = job
        self._directory = directory
        self._run = run
        self._last = dict[ClientId, int]()
        for record in directory.stream_rounds():
            self._note(record.clients)
        self.first_error: BaseException | None = None

    def updates(
        self, at_server: ServerRound, tasks: Sequence[ClientTask], control: RoundControl, clock: PhaseClock
    ) -> Iterator[Update]:
        """See `CohortFit`."""
        sensitivity = self._job.allocator.wanted_sensitivity
        fixed = self._job.link.fixed_digest(self._job.initial_state())
        saved = tuple(self._directory.checkpoint_rounds())
        asked = dict[ClientId, ClientTask]()
        for task in tasks:
            control.call("on_client_start", task.client_id, task.mode)
            if self._is_late(task):
                yield Update(self._record(at_server, task, "late"), b"")
            else:
                asked[task.client_id] = task
        orders = [
            Order(
                *("fit", at_server.number, task.client_id, fixed, task.mode),
                learning_rate_scale=task.learning_rate_scale,
                share=task.work,
                sensitivity=sensitivity,
                run=self._run,
                last=self._last.get(task.client_id, 0),
                saved=saved,
            )
            for task in asked.values()
        ]
        replies = self._nodes.ask(orders, at_server.payload_down())
        for _ in orders:
            with clock.phase("fit"):
                client_id, reply = next(replies)
                update = self._update(at_server, asked[client_id], reply)
            self._note([update.record])
            yield update

    def why_not_finite(self, round_number: int, client_id: ClientId) -> str:
        """See `CohortFit`."""
        return "its data are on its node; look for values that are not finite there, then at the learning rate"

    def _note(self, records: Sequence[ClientRecord]) -> None:
        """Note whose updates came; also those that the server then refused, of which their clients do not learn."""
        self._last.update({each.client_id: each.round for each in records if each.uplink_bytes})

    def _is_late(self, task: ClientTask) -> bool:
        deadline, clock = self._settings.round_deadline, self._job.clock
        seconds = clock.time(task.client_id, task.mode, task.is_first, task.work).total
        return deadline is not None and seconds + self._analysis_seconds(clock, task.client_id) > deadline

    def _analysis_seconds(self, clock: VirtualClock, client_id: ClientId) -> float:
        return 0.0 if self._job.allocator.wanted_sensitivity is None else clock.analysis_seconds(client_id)

    def _update(self, at_server: ServerRound, task: ClientTask, reply: Reply) -> Update:
        if reply.missing:
            status: Status = "late" if reply.is_late else "quarantined"
            return Update(self._record(at_server, task, status, reason=reply.missing), b"")
        try:
            told = _record_in(reply, at_server.number, task)
        except PayloadError as error:
            return Update(self._record(at_server, task, "quarantined", reason=str(error)), b"")
        if told.status == "quarantined" and self._settings.on_client_error == "raise":
            raise RunError(f"client {task.client_id}, on its node, in round {at_server.number}: {told.reason}")
        record = self._record(
            *(at_server, task, told.status, shortened(told.reason)),
            mode=told.mode,
            num_steps=told.num_steps,
            metrics=told.metrics,
            fit_wall_seconds=min(told.fit_wall_seconds, reply.seconds),
            uplink_bytes=len(reply.payload),
            sensitivity=told.sensitivity,
            traceback="\n".join(map(shortened, told.traceback.splitlines()[:_MOST_FRAMES])),
        )
        return Update(record, reply.payload)

    def _record(
        self, at_server: ServerRound, task: ClientTask, status: Status, reason: str = "", **told: Any
    ) -> ClientRecord:
        """A client's record; of what its node tells, only what it alone can know."""
        clock = self._job.clock
        record = ClientRecord(
            round=at_server.number,
            client_id=task.client_id,
            tier="",
            status=status,
            reason=reason,
            num_examples=0,
            download_seconds=0.0,
            compute_seconds=0.0,
            upload_seconds=0.0,
            downlink_bytes=at_server.downlink_bytes,
            analysis_seconds=self._analysis_seconds(clock, task.client_id),
            **{"mode": task.mode, "num_steps": 0, "metrics": {}, "fit_wall_seconds": 0.0, "uplink_bytes": 0} | told,
        )
        return charged(record, clock, clock.time(task.client_id, task.mode, task.is_first, task.work))


class RemoteStatistics(StatisticsRound):
    """Has clients take batch statistics on their nodes.

    Args:
        nodes: Where the clients are.
        settings: Of the run.
        job: Of the run.
        evaluator: Of the run.
        processes: This one.
        run: See `Order`.
    """

    def __init__(
        self, nodes: Nodes, settings: RunSettings, job: Job, evaluator: Evaluator, processes: Processes, run: str
    ) -> None:
        layers = job.shared_batch_norms
        super().__init__(layers, evaluator, settings.fit_options, job.datamodule, job.clock, processes)
        self._nodes = nodes
        self._job = job
        self._run = run

    def _told(
        self, client_ids: Sequence[ClientId], round_number: int, state: StateDict
    ) -> Iterator[tuple[ClientId, StateDict]]:
        link, initial = self._job.link, self._job.initial_state()
        sensitivity = self._job.allocator.wanted_sensitivity
        fixed = link.fixed_digest(initial)
        orders = [
            Order("statistics", round_number, each, fixed, sensitivity=sensitivity, run=self._run)
            for each in client_ids
        ]
        payload = link.encode_down(float_view(state), round_number, is_exact=True)
        for client_id, reply in self._nodes.ask(orders, payload):
            try:
                yield client_id, self._moments_in(reply, round_number, client_id, state)
            except PayloadError as error:
                rank_zero_warn(f"round {round_number}: no batch statistics of client {client_id}: {error}")

    def _moments_in(self, reply: Reply, round_number: int, client_id: ClientId, state: StateDict) -> StateDict:
        """What a client tells, once it is known to be statistics of this model."""
        _answer_in(reply)
        names = statistics_names({name: [name] for name in self._job.shared_batch_norms})
        like = {name: torch.zeros_like(state[name], dtype=torch.float32) for name in names}
        if self._evaluator.scheme is not None:
            like |= as_deployed(like)
        in_order = {name: like[name] for name in sorted(like)}
        moments = decode(reply.payload, in_order, {}, Header("statistics", round_number, client_id))
        if not are_usable(moments, len(like) // 2):
            raise PayloadError("its statistics are no means and variances")
        return moments


def _unique_name(directory: RunDirectory) -> str:
    """By which nodes find what their clients keep in a run.

    Raises:
        ConfigurationError: The folder is not called as one of a run.
    """
    folder = directory.path.resolve()
    name = RunName.of(folder.name)
    if name is None:
        raise ConfigurationError(
            f"{folder}: nodes find what their clients keep by the time and the id with which a run's folder begins, "
            "as 20260101-120000-a1b2c3; give the folder its name back"
        )
    return name.unique


def _answer_in(reply: Reply) -> Answer:
    if reply.missing:
        raise PayloadError(reply.missing)
    answer = Answer.of_text(reply.text)
    if answer.failure:
        raise PayloadError(shortened(answer.failure))
    return answer


def _record_in(reply: Reply, round_number: int, task: ClientTask) -> ClientRecord:
    """What a node tells of a client's fit, where it is of this client and round.

    Raises:
        PayloadError: It is not.
    """
    record = _answer_in(reply).record
    if record is None:
        raise PayloadError("its answer tells nothing of its fit")
    if (record.round, record.client_id) != (round_number, task.client_id):
        raise PayloadError(f"its answer is of client {shortened(str(record.client_id), 40)}, round {record.round}")
    if record.status == "late" or record.mode not in (task.mode, "fp"):
        raise PayloadError(f"its answer says {record.status} in {record.mode}, and it was asked for {task.mode}")
    return record
