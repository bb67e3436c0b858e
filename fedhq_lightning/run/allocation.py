"""What an allocator left in the run directory about its boundary: `allocation.json`, read back."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.support.typed_json import parse_json
from fedhq_lightning.support.untrusted_files import read_bytes
from fedhq_lightning.support.yaml_text import parse_yaml
from fedhq_lightning.types import ClientId, Mode

_MOST_BYTES = 2**24
"""Of the file: 2,000 clients, and a sentence for each of 30,000 rounds."""


@dataclass(frozen=True)
class AllottedClient:
    """One client in the plane of time and risk.

    Attributes:
        client_id: The client.
        tier: Name of its device profile.
        ptq_seconds: Virtual seconds of its round in `ptq`.
        qat_seconds: Virtual seconds of its round in `qat` with the fewest steps that it may be asked for; infinite
            where nothing is known.
        risk: What `ptq` is expected to harm.
        mode: Its mode if all clients were one cohort.
        divergence: Of its data, None where not measured.
        sensitivity: Of the model on its data, None where not measured.
        can_qat: Whether its device holds training in `qat`.
    """

    client_id: ClientId
    tier: str
    ptq_seconds: float
    qat_seconds: float
    risk: float
    mode: str
    divergence: float | None = None
    sensitivity: float | None = None
    can_qat: bool = True


@dataclass(frozen=True)
class RoundBoundary:
    """The boundary that one round was planned with.

    Attributes:
        round: From 1.
        slack: How much longer than its bottleneck the round might last.
        share: Share of clients that take all their steps whatever time that needs.
        seconds: T, virtual; 0 in old runs where `qat` had not begun.
        risk: Risk level rho.
        trial: Number of the trial in the study; 0 throughout where there is none.
        incumbent: Number of the trial to beat.
        objective: Of the trial that was judged before this round, if one was.
        judged: That trial's number.
        reason: The allocator's sentence.
        qat: Whether `qat` had begun.
        work: Share of the cohort's local steps that was asked for.
    """

    round: int
    slack: float
    share: float
    seconds: float
    risk: float
    trial: int = 0
    incumbent: int = 0
    objective: float | None = None
    judged: int | None = None
    reason: str = ""
    qat: bool = True
    work: float = 1.0

    @property
    def numbers(self) -> tuple[float, float]:
        """What the study searches: slack and share."""
        return self.slack, self.share


@dataclass(frozen=True)
class Allocation:
    """How clients were allotted over a run.

    Attributes:
        explanation: The allocator's paragraph, or empty.
        clients: At most 2,000.
        boundaries: One a round, in order.
        round_deadline: Virtual seconds after which a round ended, or None.
    """

    explanation: str
    clients: Sequence[AllottedClient]
    boundaries: Sequence[RoundBoundary]
    round_deadline: float | None = None

    def mode_under(self, client: AllottedClient, boundary: RoundBoundary) -> str:
        """What a round's boundary gives a client, in its cohort or not."""
        if not boundary.qat:
            return "ptq"
        latest = math.inf if self.round_deadline is None else self.round_deadline
        in_time = client.qat_seconds <= min(boundary.seconds, latest)
        at_risk = client.risk >= boundary.risk and client.qat_seconds <= latest
        return "qat" if client.can_qat and (in_time or at_risk) else "ptq"

    def telling_boundaries(self) -> list[RoundBoundary]:
        """The first round's, the last round's, and between them the one nearest the middle that is like neither."""
        if len(self.boundaries) < 2:
            return list(self.boundaries)
        first, *between, last = self.boundaries
        middle = (first.round + last.round) / 2
        ends = [(each.qat, *each.numbers) for each in (first, last)]
        others = [each for each in between if (each.qat, *each.numbers) not in ends]
        nearest = sorted(others, key=lambda each: abs(each.round - middle))[:1]
        return [first, *nearest, last]

    def client_rows(self) -> list[dict[str, Any]]:
        """The clients as rows of a table, every column in every row."""
        return [{**asdict(client), "client_id": str(client.client_id)} for client in self.clients]

    def boundary_rows(self) -> list[dict[str, Any]]:
        """The boundaries likewise."""
        return [asdict(boundary) for boundary in self.boundaries]


class _WrittenClient(TypedDict, total=False):
    client_id: Required[ClientId]
    tier: Required[str]
    ptq_seconds: Required[float]
    qat_seconds: Required[float | None]
    least_qat_seconds: float | None
    risk: Required[float]
    mode: Required[Mode]
    divergence: float | None
    sensitivity: float | None
    can_qat: bool


class _WrittenBoundary(TypedDict, total=False):
    round: Required[int]
    slack: Required[float]
    share: Required[float]
    seconds: Required[float]
    risk: Required[float]
    trial: int | None
    incumbent: int | None
    objective: float | None
    judged: int | None
    reason: str | None
    qat: bool
    work: float


class _Written(TypedDict, total=False):
    explanation: str | None
    clients: Required[list[_WrittenClient]]
    boundaries: Required[list[_WrittenBoundary]]


def read_allocation(run_dir: Path) -> Allocation | None:
    """Read `allocation.json`; None where the allocator left none.

    Raises:
        ConfigurationError: The file is damaged, or another allocator's of another form.
    """
    path = run_dir / "allocation.json"
    if not path.is_file():
        return None
    try:
        data = parse_json(read_bytes(path, _MOST_BYTES), _Written)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path} is damaged, or not of HybridAllocator's form: {error}") from error
    return Allocation(
        explanation=data.get("explanation") or "",
        clients=[_client(each) for each in data["clients"]],
        boundaries=[_boundary(each) for each in data["boundaries"]],
        round_deadline=_deadline(run_dir / "recipe.yaml"),
    )


def trial_windows(boundaries: Sequence[RoundBoundary]) -> list[list[RoundBoundary]]:
    """The boundaries in runs of rounds with the same trial."""
    return [list(window) for _, window in groupby(boundaries, key=lambda each: each.trial)]


def _client(data: _WrittenClient) -> AllottedClient:
    least = data.get("least_qat_seconds", data["qat_seconds"])
    return AllottedClient(
        client_id=data["client_id"],
        tier=data["tier"],
        ptq_seconds=data["ptq_seconds"],
        qat_seconds=math.inf if least is None else least,
        risk=data["risk"],
        mode=data["mode"],
        divergence=data.get("divergence"),
        sensitivity=data.get("sensitivity"),
        can_qat=data.get("can_qat", True),
    )


def _boundary(data: _WrittenBoundary) -> RoundBoundary:
    number, incumbent = data.get("trial") or 0, data.get("incumbent")
    return RoundBoundary(
        round=data["round"],
        slack=data["slack"],
        share=data["share"],
        seconds=data["seconds"],
        risk=data["risk"],
        trial=number,
        incumbent=number if incumbent is None else incumbent,
        objective=data.get("objective"),
        judged=data.get("judged"),
        reason=data.get("reason") or "",
        qat=data.get("qat", data["seconds"] > 0),
        work=data.get("work", 1.0),
    )


def _deadline(path: Path) -> float | None:
    """The recipe's `round_deadline`, where there is a recipe and it sets one."""
    if not path.is_file():
        return None
    try:
        recipe = parse_yaml(recipe_files.read(path))
    except ConfigurationError:
        return None
    trainer = recipe.get("trainer") if isinstance(recipe, dict) else None
    deadline = trainer.get("round_deadline") if isinstance(trainer, dict) else None
    return float(deadline) if isinstance(deadline, int | float) else None
