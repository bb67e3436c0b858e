"""The coarse choice in one paragraph."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from fedhq_lightning.allocation.boundary import ClientFacts, risk_level

if TYPE_CHECKING:
    from fedhq_lightning.allocation.coarse import CoarseChoice
    from fedhq_lightning.allocation.known_clients import ClientKnowledge

_WORDS = {
    "total_variation": "the total variation of its labels",
    "hellinger": "the Hellinger distance of its labels",
    "jensen_shannon": "the Jensen-Shannon distance of its labels",
    "updates": "the direction of its updates (1 for everybody until they are known)",
}


def explain(knowledge: "ClientKnowledge", choice: "CoarseChoice", least_work: float, origin: str = "") -> str:
    """Why the boundary is what it is.

    Args:
        knowledge: Of the clients.
        choice: The boundary and what it is expected to do.
        least_work: Least share of its steps that a client takes.
        origin: Where a boundary comes from that the analyses did not choose, a sentence.
    """
    boundary, sample = choice.boundary, knowledge.sample
    facts = knowledge.facts(sample)
    tiers: dict[str, list[ClientFacts]] = {}
    for client_id, each in facts.items():
        tiers.setdefault(knowledge.context.tier(client_id), []).append(each)
    slowest_first = sorted(tiers.items(), key=lambda item: -median(each.ptq_seconds for each in item[1]))
    level = risk_level([each.risk for each in facts.values()], boundary.share)
    return " ".join(
        [
            f"Hardware: {'; '.join(_tier(name, own) for name, own in slowest_first)}"
            " (virtual seconds of a round, medians).",
            f"Data: risk is {_risk(knowledge)}, {_spread([each.risk for each in facts.values()])}.",
            *([origin] if origin else []),
            f"{_time(choice, knowledge.context.rounds_wait)}: who "
            f"can take {_words(least_work)} by then trains in QAT, the others in PTQ, with as many steps as T allows"
            f"{_at_risk(level, boundary.share)}.",
            f"Expected once QAT has begun: {choice.in_qat:.0%} of a round's clients in QAT, with "
            f"{choice.protected:.0%} of the risk; {choice.work:.0%} of all local steps taken"
            f"{_longer(choice.slowdown, knowledge.context.rounds_wait)}.",
        ]
    )


def explain_start(
    noise_to_signal: float | None,
    rounds_in_ptq: int,
    is_given: bool,
    waits_for_proof: bool = False,
    was_seen: bool = False,
) -> str:
    """When `qat` begins and why, to follow the rest.

    Args:
        noise_to_signal: Noise over signal power of the rounded initial model; None where it could not be measured.
        rounds_in_ptq: Rounds before.
        is_given: Whether the user has set it.
        waits_for_proof: Whether it begins only once rounding is seen to cost.
        was_seen: Whether that was seen in an earlier run.
    """
    begins = f"QAT begins in round {rounds_in_ptq + 1}, PTQ is for everybody before" if rounds_in_ptq else ""
    if is_given:
        return f" As was given, {begins}." if begins else ""
    known = "What rounding destroys is not known"
    if noise_to_signal is not None:
        known = f"Rounding to the scheme destroys {noise_to_signal:.1%} of the power of the initial model's output"
    if waits_for_proof and was_seen:
        return f" {known}. That it costs was seen in the earlier run, so {begins or 'QAT begins at once'}."
    if waits_for_proof:
        return (
            f" {known}. So QAT begins in round {rounds_in_ptq + 1} at the earliest, and only once the deployed model "
            "is seen to be worse than its float32 original; before, PTQ is for everybody."
        )
    return f" {known}, so {begins or 'QAT begins at once'}."


def explain_outlook(in_qat: float, rounds: int, window: int | None, judged: int) -> str:
    """What follows for the run, in a sentence or two, to follow the rest.

    Args:
        in_qat: Share of a round's clients that the boundary expects in `qat`.
        rounds: Of the run.
        window: Rounds to a window; None where nothing is tried.
        judged: Boundaries that earlier runs have judged.
    """
    said = ""
    if in_qat == 0:
        said = (
            " By this boundary nobody trains in QAT: nobody can take enough of its steps in it. `slowdown` allows "
            "longer rounds, and `least_work` fewer steps."
        )
    if window is None:
        return said
    if rounds <= 3 * window:
        return said + f" {rounds} rounds are too few to try another boundary; {3 * window + 1} would do."
    return said + (f" The study starts with {judged} judged boundaries." if judged else "")


def _longer(slowdown: float, rounds_wait: bool) -> str:
    if abs(slowdown) < 0.0005:
        return ""
    what = "rounds" if rounds_wait else "from one update to the next"
    return f"; {what} {abs(slowdown):.1%} {'longer' if slowdown > 0 else 'shorter'} than in PTQ with all steps"


def _time(choice: "CoarseChoice", rounds_wait: bool) -> str:
    slack = choice.boundary.slack
    times = "" if slack == 0 else f"{1 + slack:.3g} times "
    given = "" if slack == 0 else f" (slack {slack:.3g})"
    if rounds_wait:
        return (
            f"A round takes T = {choice.seconds:.3g} s, {times}as long as its slowest client's in PTQ{given} (medians "
            "over rounds)"
        )
    return (
        f"No round waits, so each client has a T of its own, {times}as long as it takes in its faster mode{given}, "
        f"{choice.seconds:.3g} s in the mean"
    )


def _words(least_work: float) -> str:
    return "all its steps in QAT" if least_work == 1 else f"{least_work:.0%} of its steps or more in QAT"


def _tier(name: str, own: Sequence[ClientFacts]) -> str:
    ptq, qat = median(each.ptq_seconds for each in own), median(each.qat_seconds for each in own)
    unable = sum(not each.can_qat for each in own)
    short = f", {unable} without the memory for QAT" if unable else ""
    return f"{len(own)} {name} with {ptq:.3g} in PTQ and {qat:.3g} in QAT{short}"


def _risk(knowledge: "ClientKnowledge") -> str:
    parts = [] if knowledge.divergence is None else [_WORDS[knowledge.divergence]]
    if knowledge.sensitivity is not None:
        parts.append(f"how much the scheme hurts the model on its data ({knowledge.sensitivity})")
    return " times ".join(parts) or "the same for everybody (no measure is set)"


def _at_risk(level: float, share: float) -> str:
    if share == 0:
        return ""
    return f"; those whose risk reaches rho = {level:.3g} (share {share:.2g}) take all steps whatever that needs"


def _spread(risks: Sequence[float]) -> str:
    return f"{min(risks):.2g} to {max(risks):.2g} with a median of {median(risks):.2g}"
