"""The boundary between PTQ and QAT in the plane of time and risk.

Our reading of FedHQ's trade-off boundary (its abstract names it, and no more): a time budget T and a risk level rho.
A client trains in `qat` where its device holds it in memory and either its round in `qat` ends within T, or its risk
reaches rho and it still meets the round's deadline. Everybody else trains in `ptq`.

Two things differ from a pair of fixed numbers. T follows the cohort: a synchronous round lasts as long as its slowest
client, so whoever is done in `qat` before the slowest is done at all trains in `qat` for free. And rho is a rank, the
share of all clients that are at risk, so that a boundary keeps its meaning from run to run.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import ClientId, Mode

LEAST_SLACK = -1.0
"""Time lets nobody into `qat`."""


def is_number(value: object) -> bool:
    """Whether a number is given; truth values are none here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Boundary:
    """What separates `ptq` clients from `qat` clients.

    Args:
        slack: How much longer than its bottleneck a round may last for the sake of `qat`: 0.1 allows a tenth. Below 0
            `qat` is for those who are done so much earlier; -1, the least, is `qat` for nobody by time.
        share: Share of all clients, those with the highest risk, that train in `qat` whatever time it takes, 0 to 1.
            `slack` 0 and `share` 0 gives `qat` where it is free; `share` 1 gives it to everybody.

    Raises:
        ConfigurationError: A number outside its range.
    """

    slack: float
    share: float

    def __post_init__(self) -> None:
        if not (is_number(self.slack) and math.isfinite(self.slack) and self.slack >= LEAST_SLACK):
            raise ConfigurationError(f"boundary: slack {self.slack!r} must be a finite number, -1 or more")
        if not (is_number(self.share) and 0 <= self.share <= 1):
            raise ConfigurationError(f"boundary: share {self.share!r} must be a number from 0 to 1")


FREE = Boundary(0.0, 0.0)
"""`qat` where it is free."""


@dataclass(frozen=True)
class ClientFacts:
    """What decides over one client.

    Attributes:
        ptq_seconds: Virtual seconds of its round in `ptq`.
        qat_seconds: Virtual seconds of its round in `qat`.
        risk: What `ptq` is expected to harm, >= 0.
        can_qat: Whether its device holds training in `qat`.
    """

    ptq_seconds: float
    qat_seconds: float
    risk: float
    can_qat: bool = True

    @property
    def least_seconds(self) -> float:
        """Virtual seconds in the faster mode that it can train in."""
        return min(self.ptq_seconds, self.qat_seconds) if self.can_qat else self.ptq_seconds


def bottleneck_seconds(facts: Iterable[ClientFacts], deadline: float | None = None) -> float:
    """Virtual seconds that a round lasts at least: its slowest client in its faster mode, or the deadline.

    Args:
        facts: Of the round's clients.
        deadline: Virtual seconds after which the round ends without those who are late.
    """
    slowest = max((each.least_seconds for each in facts), default=0.0)
    return slowest if deadline is None else min(slowest, deadline)


def round_seconds(
    facts: Mapping[ClientId, ClientFacts], modes: Mapping[ClientId, Mode], deadline: float | None = None
) -> float:
    """Virtual seconds of a round: its slowest client in its mode, or the deadline.

    Args:
        facts: Of the round's clients.
        modes: Of the same, `ptq` or `qat`.
        deadline: Virtual seconds after which the round ends without those who are late.
    """
    own = ((facts[each].qat_seconds if mode == "qat" else facts[each].ptq_seconds) for each, mode in modes.items())
    slowest = max(own, default=0.0)
    return slowest if deadline is None else min(slowest, deadline)


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
    boundary: Boundary, cohort: Mapping[ClientId, ClientFacts], level: float, deadline: float | None = None
) -> tuple[dict[ClientId, Mode], float]:
    """Modes of one round's clients.

    Args:
        boundary: Where to divide them.
        cohort: Facts of each client.
        level: The risk level rho, see `risk_level`.
        deadline: Virtual seconds after which the round ends, or None.

    Returns:
        A mode per client, in the order given, and the time budget T in virtual seconds.
    """
    budget = (1 + boundary.slack) * bottleneck_seconds(cohort.values(), deadline)
    latest = math.inf if deadline is None else deadline

    def mode(facts: ClientFacts) -> Mode:
        at_risk = facts.risk >= level and facts.qat_seconds <= latest
        return "qat" if facts.can_qat and (facts.qat_seconds <= min(budget, latest) or at_risk) else "ptq"

    return {client_id: mode(facts) for client_id, facts in cohort.items()}, budget
