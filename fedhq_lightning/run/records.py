"""What a client and a round leave behind: plain records, one line of `rounds.jsonl` a round."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.evaluated_clients import ClientsEvaluation
from fedhq_lightning.support.typed_json import parse_json, typed
from fedhq_lightning.support.untrusted_files import read_lines
from fedhq_lightning.types import MODES, ClientId, Count, Mode, Plan, Seconds

Status: TypeAlias = Literal["ok", "late", "idle", "quarantined"]
"""`ok`: aggregated. The others are left out: `late`: past the round's deadline; `idle`: it took no optimizer step, so
there is nothing to send; `quarantined`: its update failed a check."""

MOST_LINE_BYTES = 2**27
"""Of `rounds.jsonl`: a round with 300,000 clients."""
LEFT_OUT: tuple[Literal["late", "idle", "quarantined"], ...] = ("late", "idle", "quarantined")
"""Why a client's update may be missing from the average; `RoundRecord` counts each."""


def _encode(value: Any) -> Any:
    """Plain value for strict JSON, which has no NaN or infinity: those travel as the strings that `float` reads."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


@dataclass(frozen=True)
class ClientRecord:
    """What one client did in one round.

    Attributes:
        round: Number of the round that took its update, from 1.
        client_id: The client.
        tier: Name of its device profile.
        mode: How it trained.
        status: Whether its update was aggregated.
        num_examples: Examples it holds, its weight in the average.
        num_steps: Optimizer steps taken.
        metrics: What the module logged while training, averaged over the last local epoch.
        fit_wall_seconds: Wall seconds of the local fit where it ran, on this host or a node.
        download_seconds: Virtual seconds to receive the global model.
        compute_seconds: Virtual seconds of the local fit on the client's device; with `trainer.measured_seconds` wall
            seconds, without what it measured for the allocator.
        upload_seconds: Virtual seconds to send the update.
        uplink_bytes: Payload sent.
        downlink_bytes: Payload received.
        reason: Why it was quarantined or idle, or why it trained in another mode than planned; else empty. One line.
        analysis_seconds: Virtual seconds of what the client measured for the allocator.
        sensitivity: How much rounding the model it received harms it on its own data; None where not asked for.
        update_divergence: 1 - cosine of its update with the mean update, 0 to 2; None where not asked for.
        traceback: The last frames of what its code raised, a line each; else empty.
        staleness: Steps of the server since the model that it began with; 0 where rounds wait for their clients.
    """

    round: Count
    client_id: ClientId
    tier: str
    mode: Mode
    status: Status
    num_examples: Count
    num_steps: Count
    metrics: dict[str, float]
    fit_wall_seconds: Seconds
    download_seconds: Seconds
    compute_seconds: Seconds
    upload_seconds: Seconds
    uplink_bytes: Count
    downlink_bytes: Count
    reason: str = ""
    analysis_seconds: Seconds = 0.0
    sensitivity: float | None = None
    update_divergence: float | None = None
    traceback: str = ""
    staleness: Count = 0

    @property
    def begun_in(self) -> int:
        """The round whose model the client began with."""
        return self.round - self.staleness

    @property
    def virtual_seconds(self) -> float:
        """Virtual seconds from the start of the download to the end of the upload."""
        return self.download_seconds + self.analysis_seconds + self.compute_seconds + self.upload_seconds

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values that strict JSON can hold."""
        return {field.name: _encode(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ClientRecord":
        """The record that `to_json` wrote; keys of a later version are left aside.

        Raises:
            ConfigurationError: A field is missing, or of another type.
        """
        return typed(data, cls)


@dataclass(frozen=True)
class RoundRecord:
    """What one round did.

    Attributes:
        round: Number of the round, from 1; 0 is the evaluation before training, without clients.
        metrics: Metrics by prefix: `fp/...`, `quantized/...` (evaluation), `train/...` (mean over the clients);
            no `fp/` and `quantized/` where the round was not evaluated.
        metric_fp: Monitored metric of the global model, None where it was not evaluated.
        metric_quantized: Monitored metric of the deployed model, None where it was not evaluated.
        wall_seconds: Wall seconds of this round, evaluation included.
        fit_wall_seconds: Wall seconds of this round's local fits.
        allocator_seconds: Wall seconds of this round's planning.
        virtual_seconds: Virtual seconds of this round, waiting included.
        total_wall_seconds: Wall seconds since the start.
        total_virtual_seconds: Virtual seconds since the start.
        uplink_bytes: Bytes received from this round's clients.
        downlink_bytes: Bytes sent to this round's clients.
        mode_counts: Clients of this round per mode.
        quarantined: Clients of this round whose update failed a check.
        late: Clients of this round past the deadline.
        idle: Clients of this round that took no optimizer step.
        clients: One record a client.
        reason: Why the clients were planned so.
        allocation: What the allocator logged with its plan, such as the boundary.
        wait_seconds: Virtual seconds that this round waited for its first client to be available.
        statistics_seconds: Virtual seconds in which clients took the model's batch statistics anew.
        statistics_uplink_bytes: Bytes received for that, part of `uplink_bytes`.
        statistics_downlink_bytes: Bytes sent for that, part of `downlink_bytes`.
        epsilon: What the rounds until this one have spent of the clients' privacy; None without `trainer.privacy`.
        evaluation: What clients found on what they hold back, and its cost, part of `virtual_seconds` and of the bytes;
            None where they were not asked.
    """

    round: Count
    metrics: dict[str, float]
    metric_fp: float | None
    metric_quantized: float | None
    wall_seconds: Seconds
    fit_wall_seconds: Seconds
    allocator_seconds: Seconds
    virtual_seconds: Seconds
    total_wall_seconds: Seconds
    total_virtual_seconds: Seconds
    uplink_bytes: Count
    downlink_bytes: Count
    mode_counts: dict[str, Count]
    quarantined: Count
    late: Count
    clients: tuple[ClientRecord, ...]
    reason: str = ""
    allocation: dict[str, float] = field(default_factory=dict)
    wait_seconds: Seconds = 0.0
    idle: Count = 0
    statistics_seconds: Seconds = 0.0
    statistics_uplink_bytes: Count = 0
    statistics_downlink_bytes: Count = 0
    epsilon: float | None = None
    evaluation: ClientsEvaluation | None = None

    @classmethod
    def of_clients(
        cls,
        round_number: int,
        plan: Plan,
        clients: Sequence[ClientRecord],
        metrics: Mapping[str, float],
        before: tuple[float, float],
        *,
        wall_seconds: float,
        fit_wall_seconds: float,
        allocator_seconds: float,
        virtual_seconds: float,
        metric_fp: float | None = None,
        metric_quantized: float | None = None,
        wait_seconds: float = 0.0,
        statistics_seconds: float = 0.0,
        statistics_uplink_bytes: int = 0,
        statistics_downlink_bytes: int = 0,
        epsilon: float | None = None,
        evaluation: ClientsEvaluation | None = None,
    ) -> Self:
        """The record of a round, with what its clients' records add up to.

        Args:
            round_number: From 0.
            plan: Who trained how.
            clients: One record a client.
            metrics: By prefix.
            before: Wall and virtual seconds of all earlier rounds.
            wall_seconds: Of this round.
            fit_wall_seconds: Of this round's local fits.
            allocator_seconds: Of this round's planning.
            virtual_seconds: Of this round, waiting included, but for the evaluation on clients.
            metric_fp: Monitored metric of the global model, where it is known by now.
            metric_quantized: Monitored metric of the deployed model, where it is known by now.
            wait_seconds: Virtual seconds that the round waited for its first client.
            statistics_seconds: Virtual seconds in which clients took batch statistics anew.
            statistics_uplink_bytes: Bytes received for that.
            statistics_downlink_bytes: Bytes sent for that.
            epsilon: Of the rounds until this one.
            evaluation: What clients found; its cost is added.
        """
        cost = evaluation or ClientsEvaluation(())
        virtual_seconds += cost.virtual_seconds
        return cls(
            round=round_number,
            metrics=dict(metrics),
            wall_seconds=wall_seconds,
            fit_wall_seconds=fit_wall_seconds,
            allocator_seconds=allocator_seconds,
            virtual_seconds=virtual_seconds,
            total_wall_seconds=before[0] + wall_seconds,
            total_virtual_seconds=before[1] + virtual_seconds,
            uplink_bytes=sum(each.uplink_bytes for each in clients) + statistics_uplink_bytes + cost.uplink_bytes,
            downlink_bytes=sum(each.downlink_bytes for each in clients)
            + statistics_downlink_bytes
            + cost.downlink_bytes,
            mode_counts=plan.counts(),
            **{status: sum(client.status == status for client in clients) for status in LEFT_OUT},
            clients=tuple(clients),
            reason=plan.reason,
            allocation=dict(plan.logged),
            metric_fp=metric_fp,
            metric_quantized=metric_quantized,
            wait_seconds=wait_seconds,
            statistics_seconds=statistics_seconds,
            statistics_uplink_bytes=statistics_uplink_bytes,
            statistics_downlink_bytes=statistics_downlink_bytes,
            epsilon=epsilon,
            evaluation=evaluation,
        )

    @property
    def usable(self) -> int:
        """How many clients sent an update that passed all checks."""
        return sum(self.mode_counts.values()) - self.quarantined - self.late - self.idle

    @property
    def monitored(self) -> float | None:
        """The monitored value: that of the deployed model where there is one, else of the global model."""
        return self.metric_fp if self.metric_quantized is None else self.metric_quantized

    def without_clients(self) -> Self:
        """What of it is kept in memory: clients may be many, and are in `rounds.jsonl`."""
        evaluation = None if self.evaluation is None else replace(self.evaluation, clients=())
        return replace(self, clients=(), evaluation=evaluation)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values that strict JSON can hold, the clients as a list of such dicts."""
        values = {field.name: _encode(getattr(self, field.name)) for field in fields(self)}
        evaluation = None if self.evaluation is None else _encode(asdict(self.evaluation))
        return values | {"clients": [client.to_json() for client in self.clients], "evaluation": evaluation}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RoundRecord":
        """The record that `to_json` wrote; keys of a later version are left aside.

        Raises:
            ConfigurationError: A field is missing, or of another type, here or in one of the clients.
        """
        return typed(data, cls)


def read_rounds(path: Path) -> Iterator[RoundRecord]:
    """The records of a `rounds.jsonl`, one at a time, so that a long run need not fit in memory.

    A last line without its end, which a killed run left unfinished, is left out.

    Raises:
        ConfigurationError: The file is missing, or a line before the last is damaged.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file; give the folder of a run, it holds rounds.jsonl")
    for number, line in enumerate(read_lines(path, MOST_LINE_BYTES), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            record = parse_json(line, RoundRecord)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: line {number} is damaged: {error}") from error
        yield record


def distinct_clients(rounds: Iterable[RoundRecord]) -> Iterator[ClientId]:
    """Every client that took part, once, in the order of its first round; consumes no more rounds than are needed."""
    seen: set[ClientId] = set()
    for client in (client for record in rounds for client in record.clients):
        if client.client_id not in seen:
            seen.add(client.client_id)
            yield client.client_id


def tier_figures(rounds: Iterable[RoundRecord]) -> list[dict[str, Any]]:
    """What each device tier did, slowest tier first; what `summary.json` holds under `tiers`.

    Args:
        rounds: The run's records; consumed one at a time.

    Returns:
        One dict a tier: `tier`, `clients` (distinct clients that took part), `fits` (local fits), `mode_counts` (fits
        per mode), `late`, `idle`, `quarantined`, and the mean virtual seconds of a fit `download_seconds`,
        `compute_seconds`, `upload_seconds`.
    """
    parts = ("download_seconds", "compute_seconds", "upload_seconds")
    tiers: dict[str, dict[str, Any]] = {}
    members: dict[str, set[ClientId]] = {}
    for record in rounds:
        for client in record.clients:
            counts = {"fits": 0, "mode_counts": dict.fromkeys(MODES, 0)} | dict.fromkeys(LEFT_OUT, 0)
            figures = tiers.setdefault(
                client.tier, {"tier": client.tier, "clients": 0} | counts | dict.fromkeys(parts, 0.0)
            )
            members.setdefault(client.tier, set()).add(client.client_id)
            figures["fits"] += 1
            figures["mode_counts"][client.mode] += 1
            if client.status != "ok":
                figures[client.status] += 1
            for part in parts:
                figures[part] += getattr(client, part)
    for name, figures in tiers.items():
        figures["clients"] = len(members[name])
        for part in parts:
            figures[part] /= figures["fits"]
    return sorted(tiers.values(), key=lambda figures: -sum(figures[part] for part in parts))
