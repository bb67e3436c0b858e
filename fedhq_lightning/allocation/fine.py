"""Fine-grained adjustment: windows of rounds under challenging boundaries, between windows under the incumbent.

    incumbent | challenger | incumbent | challenger | incumbent ...

A challenger's window is judged when the incumbent's window after it has ended (see `judge`). One that is promising is
tried again; one that is ahead beyond noise over at least two windows becomes the incumbent. So a bad trial costs one
window, and a lucky one cannot take over.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from fedhq_lightning.allocation.boundary import Boundary
from fedhq_lightning.allocation.judge import (
    BEATEN_BEYOND,
    PROMISING_BEYOND,
    Verdict,
    Window,
    compare,
    confidence,
    noise_of,
)
from fedhq_lightning.allocation.study import BoundaryStudy, Trial

_FEWEST_VERDICTS = 2
"""Windows of a challenger, before it may become the incumbent."""
_LEAST_SLACK = 0.05
"""Width of the search where time keeps nobody from qat: corrected times may change that."""
_MOST_ASKED = 10
"""Boundaries asked for until one is worth trying."""


@dataclass
class _Standing:
    """Where the adjustment stands; plain values, but for windows and verdicts, which are pairs and triples of numbers.

    Attributes:
        incumbent: Number of the trial to beat.
        is_coarse: Whether that is a boundary from the analyses, not one that won.
        challenger: Number of the open trial, or None.
        on_trial: Whether the rounds now are the challenger's.
        verdicts: On the challenger, one a window.
        before: The incumbent's last window.
        tried: The challenger's window that awaits the incumbent's after it.
        begun: Value at the start of this window; None before the first logged value.
        rounds: Done in this window.
        seconds: Virtual, of these rounds.
        values: The logged curve, larger is better.
    """

    incumbent: int = 0
    is_coarse: bool = True
    challenger: int | None = None
    on_trial: bool = False
    verdicts: list[Verdict] = field(default_factory=list)
    before: Window | None = None
    tried: Window | None = None
    begun: float | None = None
    rounds: int = 0
    seconds: float = 0.0
    values: list[float] = field(default_factory=list)


class FineAdjustment:
    """Which boundary a round is planned with.

    Args:
        start: The boundary to start with, trial 0.
        greatest_slack: Where the search for slack ends.
        window: Rounds to a window; None keeps the first boundary for ever.
        seed: The run's.
        max_rounds: Rounds of the run; no challenger is taken up that could not be judged any more.
        sign: 1 where a larger monitored value is better, else -1.
        is_worth_trying: Whether a boundary may challenge another in some rounds: plans other modes, and none too long.
        earlier: Trials of earlier runs.
    """

    def __init__(
        self,
        start: Boundary,
        greatest_slack: float,
        window: int | None,
        seed: int,
        max_rounds: int,
        sign: float,
        is_worth_trying: Callable[[Boundary, Boundary, range], bool],
        earlier: Sequence[Trial] = (),
    ) -> None:
        self._study = BoundaryStudy(seed, max(greatest_slack, _LEAST_SLACK))
        self._study.add(start, 0.0)
        for trial in earlier:
            self._study.add(trial.boundary, trial.value, trial.origin)
        self._window = window
        self._max_rounds = max_rounds
        self._sign = sign
        self._is_worth_trying = is_worth_trying
        self._standing = _Standing()
        self._told: dict[str, float] = {}
        self.reason = "the boundary chosen before round 1"

    @property
    def incumbent(self) -> Trial:
        """The boundary to beat."""
        return self._study.trials[self._standing.incumbent]

    @property
    def trials(self) -> Sequence[Trial]:
        """Everything tried, by number."""
        return tuple(self._study.trials)

    @property
    def current(self) -> Trial:
        """The boundary that the next round is planned with."""
        standing = self._standing
        if standing.on_trial and standing.challenger is not None:
            return self._study.trials[standing.challenger]
        return self.incumbent

    def take_verdict(self) -> dict[str, float]:
        """`judged` (a trial's number) and its `objective`, once after each verdict; else nothing."""
        told, self._told = self._told, {}
        return told

    def observe(self, round_number: int, seconds: float, value: float | None) -> None:
        """Take in a round; at the end of a window decide what comes next.

        Args:
            round_number: From 1.
            seconds: Virtual seconds that the round took, without waiting for clients.
            value: The monitored value as logged, or None where the round was not evaluated.
        """
        standing = self._standing
        standing.rounds += 1
        standing.seconds += seconds
        if self._window is None or value is None:
            return
        if not math.isfinite(value):
            self._begin_anew()
            return
        value = self._sign * value
        standing.values.append(value)
        begun = standing.begun
        if begun is not None and standing.rounds < self._window:
            return
        took = standing.seconds
        standing.begun, standing.rounds, standing.seconds = value, 0, 0.0
        if begun is not None and took > 0:
            self._close(Window(took, value - begun), round_number)

    def restart(self, start: Boundary, greatest_slack: float, why: str) -> None:
        """Take up another coarse boundary, unless the run has found a better one than the coarse one by then.

        Args:
            start: The boundary, from corrected facts.
            greatest_slack: Where the search for slack ends now.
            why: For the log.
        """
        if self._window is None or not self._standing.is_coarse:
            return
        self._study.greatest_slack = max(greatest_slack, _LEAST_SLACK)
        if start != self.incumbent.boundary:
            self._drop_challenger(None)
            standing = self._standing
            standing.incumbent = self._study.add(start, 0.0).number
            # Rounds under the boundary before are no window of this one.
            standing.before, standing.begun, standing.rounds, standing.seconds = None, None, 0, 0.0
            self.reason = f"{why}, so trial {standing.incumbent} is the coarse boundary now"

    def write(self, path: Path) -> None:
        """Write the study, see `BoundaryStudy.write`."""
        self._study.write(path)

    def state_dict(self) -> dict[str, Any]:
        """What a resume goes on from, as plain values."""
        trials = [trial.to_json() for trial in self._study.trials]
        standing = asdict(self._standing)
        return {
            "trials": trials,
            "greatest_slack": self._study.greatest_slack,
            "standing": standing,
            "told": dict(self._told),
            "reason": self.reason,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._study.trials = [Trial.from_json(each) for each in state["trials"]]
        self._study.greatest_slack = state["greatest_slack"]
        held = dict(state["standing"])
        held["verdicts"] = [Verdict(**each) for each in held["verdicts"]]
        for name in ("before", "tried"):
            held[name] = None if held[name] is None else Window(**held[name])
        self._standing = _Standing(**{**held, "values": list(held["values"])})
        self._told = dict(state["told"])
        self.reason = state["reason"]

    def _close(self, window: Window, round_number: int) -> None:
        """A window has ended with this round."""
        standing = self._standing
        if standing.on_trial:
            standing.tried, standing.on_trial = window, False
            self.reason = f"trial {standing.incumbent}, the incumbent, to compare trial {standing.challenger} with"
            return
        said = ""
        if standing.tried is not None and standing.before is not None and standing.challenger is not None:
            verdict = compare(standing.tried, standing.before, window, noise_of(standing.values))
            standing.verdicts.append(verdict)
            standing.tried = None
            incumbent, said = standing.incumbent, self._judge(standing.challenger)
            if standing.incumbent != incumbent:
                # This was the window of the one that was beaten; the next is compared with the winner's own.
                standing.before, self.reason = None, said
                return
        standing.before = window
        self.reason = "; ".join(filter(None, (said, self._challenge(round_number))))

    def _begin_anew(self) -> None:
        """After a value that is no number: what is under way can be compared with nothing."""
        standing = self._standing
        self.reason = f"trial {standing.incumbent}, the incumbent: the monitored value was no number"
        if standing.on_trial:
            self.reason += f", so trial {standing.challenger} failed"
            self._drop_challenger(None)
        standing.before = standing.tried = standing.begun = None
        standing.rounds, standing.seconds = 0, 0.0

    def _judge(self, challenger: int) -> str:
        """Keep, drop or crown the challenger by all its windows so far; says which."""
        standing = self._standing
        objectives = [each.objective for each in standing.verdicts]
        self._told = {"judged": float(challenger), "objective": objectives[-1]}
        ahead = confidence(standing.verdicts)
        if ahead >= BEATEN_BEYOND and len(objectives) >= _FEWEST_VERDICTS:
            self._drop_challenger(fmean(objectives))
            standing.incumbent, standing.is_coarse = challenger, False
            return f"trial {challenger} beat the incumbent by {ahead:.1f} standard deviations and takes over"
        if ahead < PROMISING_BEYOND:
            self._drop_challenger(fmean(objectives))
            return f"trial {challenger} is not ahead beyond noise ({ahead:.1f} standard deviations): dropped"
        return f"trial {challenger} is promising ({ahead:.1f} standard deviations ahead)"

    def _drop_challenger(self, value: float | None) -> None:
        standing = self._standing
        if standing.challenger is not None:
            self._study.tell(standing.challenger, value)
        standing.challenger, standing.on_trial, standing.verdicts, standing.tried = None, False, [], None

    def _challenge(self, round_number: int) -> str:
        """Give the next window to a challenger, if there is time to judge it and one that makes a difference."""
        standing = self._standing
        assert self._window is not None
        # One round more than the two windows, so that the verdict is logged with it.
        if self._max_rounds - round_number <= 2 * self._window:
            objectives = [each.objective for each in standing.verdicts]
            self._drop_challenger(fmean(objectives) if objectives else None)
            return f"trial {standing.incumbent}, the incumbent, to the end: no time to judge another"
        incumbent, rounds = self.incumbent.boundary, range(round_number + 1, round_number + 1 + self._window)
        if standing.challenger is None:
            asked = (self._study.ask(incumbent, attempt) for attempt in range(_MOST_ASKED))
            found = next((each for each in asked if self._is_worth_trying(each, incumbent, rounds)), None)
            if found is not None:
                standing.challenger = self._study.add(found, None).number
        elif not self._is_worth_trying(self._study.trials[standing.challenger].boundary, incumbent, rounds):
            return f"trial {standing.challenger} would not change the next rounds, or make them too long: it waits"
        if standing.challenger is None:
            return "no boundary nearby would change the next rounds without making them too long"
        standing.on_trial = True
        return f"trial {standing.challenger} challenges trial {standing.incumbent}"
