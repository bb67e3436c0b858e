"""The boundary between PTQ and QAT, and between all local steps and fewer, in the plane of time and risk.

Our reading of FedHQ's trade-off boundary (its abstract names it, and no more): a time T that a round may take and a
risk level rho. A client whose device holds QAT trains in it with as many of its local steps as T allows, where that is
enough of them; else in PTQ, again with as many as T allows. Clients at risk, whose data are unlike everybody's, take
all their steps whatever time that needs.

T follows the cohort: a synchronous round lasts as long as its slowest client, so T is a multiple of what that one takes
at least. Where no round waits, a client costs its own time and no more, so each has a T of its own. And rho is a rank,
the share of all clients that are at risk, so that a boundary keeps its meaning from run to run. Fewer steps on slow
devices, at the same weight in the mean, are FedProx's partial work (Li et al. 2020).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import ClientId, Mode


def is_number(value: object) -> bool:
    """Whether a number is given; truth values are none here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Boundary:
    """What a round may take, and who is exempt.

    Args:
        slack: How much longer than its bottleneck a round, or a client where no round waits, may take: 0.1 allows a
            tenth. Below 0 rounds are shorter: -0.5 cuts slow clients' steps until rounds last half as long.
        share: Share of all clients, those with the highest risk, that take all their steps, in `qat` where their
            devices hold it, 0 to 1.

    Raises:
        ConfigurationError: A number outside its range.
    """

    slack: float
    share: float

    def __str__(self) -> str:
        return f"slack {self.slack:.2g}, share {self.share:.2g}"

    def __post_init__(self) -> None:
        if not (is_number(self.slack) and math.isfinite(self.slack) and self.slack > -1):
            raise ConfigurationError(f"boundary: slack {self.slack!r} must be a finite number above -1")
        if not (is_number(self.share) and 0 <= self.share <= 1):
            raise ConfigurationError(f"boundary: share {self.share!r} must be a number from 0 to 1")


FREE = Boundary(0.0, 0.0)
"""Rounds as long as their slowest client takes in its faster mode; where no round waits, each client as it does."""


@dataclass(frozen=True)
class ClientFacts:
    """What decides over one client.

    Attributes:
        ptq_seconds: Virtual seconds of its round in `ptq`, all steps.
        qat_seconds: Virtual seconds of its round in `qat`, all steps.
        risk: What `ptq` is expected to harm, >= 0.
        can_qat: Whether its device holds training in `qat`.
        fixed_seconds: Of these seconds those that fewer steps do not save: its link and what it measures.
        num_steps: Optimizer steps of its local fit.
    """

    ptq_seconds: float
    qat_seconds: float
    risk: float
    can_qat: bool = True
    fixed_seconds: float = 0.0
    num_steps: int = 1

    @property
    def least_seconds(self) -> float:
        """Virtual seconds in the faster mode that it can train in, all steps."""
        return min(self.ptq_seconds, self.qat_seconds) if self.can_qat else self.ptq_seconds

    def seconds(self, mode: Mode, work: float = 1.0) -> float:
        """Virtual seconds of its round in `ptq` or `qat` with a share of its steps."""
        whole = self.qat_seconds if mode == "qat" else self.ptq_seconds
        return self.fixed_seconds + work * (whole - self.fixed_seconds)


class Allotment(NamedTuple):
    """One round's clients, allotted.

    Attributes:
        modes: `ptq` or `qat` of each client, in the order given.
        work: Share of their local steps of those who do not take all.
        seconds: T, virtual; where no round waits, the mean of the clients'.
    """

    modes: dict[ClientId, Mode]
    work: dict[ClientId, float]
    seconds: float


def fitting_work(whole: float, fixed: float, limit: float) -> float:
    """Share of a client's steps that end within a limit, 0 to 1.

    Args:
        whole: Virtual seconds of its round with all steps.
        fixed: Of these, what fewer steps do not save.
        limit: Virtual seconds.
    """
    if whole <= limit:
        return 1.0
    return max(0.0, (limit - fixed) / (whole - fixed)) if whole > fixed else 0.0


def least_round_seconds(facts: Iterable[ClientFacts], deadline: float | None = None, waits: bool = True) -> float:
    """Virtual seconds that a round with all steps lasts at least: of its slowest client, in its faster mode.

    Where no round waits, of its mean client, see `lasting`.

    Args:
        facts: Of the round's clients.
        deadline: Virtual seconds after which the round ends without those who are late; the most that it can last.
        waits: Whether the round waits for its slowest client.
    """
    return lasting([each.least_seconds for each in facts], deadline, waits)


def round_seconds(
    facts: Mapping[ClientId, ClientFacts], allotment: Allotment, deadline: float | None = None, waits: bool = True
) -> float:
    """Virtual seconds of a round: its slowest client, or the deadline.

    Args:
        facts: Of the round's clients.
        allotment: Of the same.
        deadline: Virtual seconds after which the round ends without those who are late.
        waits: Whether the round waits for its slowest client; see `lasting`.
    """
    own = [facts[each].seconds(mode, allotment.work.get(each, 1.0)) for each, mode in allotment.modes.items()]
    return lasting(own, deadline, waits)


def lasting(seconds: Sequence[float], deadline: float | None = None, waits: bool = True) -> float:
    """How long a round of such clients lasts: its slowest, or the deadline.

    Where no round waits: the mean, to which the time from one step of the server to the next is proportional, since
    who has come makes room for a client drawn at random.

    Args:
        seconds: Of each client, virtual.
        deadline: After which the round ends.
        waits: Whether the round waits for its slowest client.
    """
    if not seconds:
        return 0.0
    length = max(seconds) if waits else math.fsum(seconds) / len(seconds)
    return length if deadline is None else min(length, deadline)


def risk_level(risks: Sequence[float], share: float) -> float:
    """The risk that the `share` of clients with the highest risks reach or exceed.

    Args:
        risks: Of all clients, or of a fair sample of them; finite.
        share: 0 to 1; the number of clients meant is rounded half up.

    Returns:
        A finite number; just above the highest risk where nobody is meant. Clients of equal risk are meant together.
    """
    count = min(len(risks), math.floor(share * len(risks) + 0.5))
    if not risks:
        return 0.0
    return sorted(risks, reverse=True)[count - 1] if count else math.nextafter(max(risks), math.inf)


def allot(
    boundary: Boundary,
    cohort: Mapping[ClientId, ClientFacts],
    level: float,
    least_work: float,
    deadline: float | None = None,
    qat: bool = True,
    waits: bool = True,
) -> Allotment:
    """Modes and steps of one round's clients.

    Args:
        boundary: Where to divide them.
        cohort: Facts of each client.
        level: The risk level rho, see `risk_level`.
        least_work: Least share of its steps that a client takes, above 0 and up to 1; who cannot take as many in `qat`
            within T trains in `ptq`, and exceeds T rather than take fewer.
        deadline: Virtual seconds after which the round ends, or None.
        qat: Whether `qat` has begun; before, everybody trains in `ptq`.
        waits: Whether the round waits for its slowest client; else each has its own T, and the mean is told.
    """
    latest = math.inf if deadline is None else deadline
    length = min((1 + boundary.slack) * least_round_seconds(cohort.values(), deadline, waits), latest)
    modes: dict[ClientId, Mode] = {}
    work: dict[ClientId, float] = {}
    for client_id, facts in cohort.items():
        limit = length if waits else min((1 + boundary.slack) * facts.least_seconds, latest)
        time = latest if facts.risk >= level else limit
        in_qat = fitting_work(facts.qat_seconds, facts.fixed_seconds, time)
        if qat and facts.can_qat and in_qat >= least_work:
            modes[client_id], share = "qat", in_qat
        else:
            fits = fitting_work(facts.ptq_seconds, facts.fixed_seconds, time)
            modes[client_id], share = "ptq", max(fits, least_work)
        if share < 1:
            work[client_id] = share
    return Allotment(modes, work, length)
