"""Fine-grained adjustment: windows of rounds under challenging boundaries, between windows under the incumbent.

    incumbent | challenger | incumbent | challenger | incumbent ...

A challenger's window is judged when the incumbent's window after it has ended, by progress per virtual second (see
`judge`): with shorter rounds it takes over unless it was behind beyond the noise of single evaluations, with longer
ones only if it was ahead beyond that. All windows train the model, so a trial costs little.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedhq_lightning.allocation.boundary import Boundary
from fedhq_lightning.allocation.judge import Window, compare
from fedhq_lightning.allocation.study import BoundaryStudy, Trial


@dataclass
class _Standing:
    """Where the adjustment stands; plain values, but for windows.

    Attributes:
        incumbent: Number of the trial to beat.
        challenger: Number of the open trial, or None.
        on_trial: Whether the rounds now are the challenger's.
        before: The incumbent's last window.
        tried: The challenger's window that awaits the incumbent's after it.
        begun: Value at the start of this window; None before the first logged value.
        rounds: Done in this window.
        seconds: How long they lasted, see `FineAdjustment.observe`.
        curve: The logged values.
        saved: Share of the time that the challenger was planned to save; below 0 where it takes longer.
        asked: How often the study was.
    """

    incumbent: int
    curve: list[float]
    challenger: int | None = None
    on_trial: bool = False
    before: Window | None = None
    tried: Window | None = None
    begun: float | None = None
    rounds: int = 0
    seconds: float = 0.0
    saved: float = 0.0
    asked: int = 0


class FineAdjustment:
    """Which boundary a round is planned with.

    Args:
        study: Holds the boundary to start with as its last trial.
        window: Rounds to a window; None keeps the first boundary for ever.
        max_rounds: Rounds of the run; no challenger is taken up that could not be judged any more.
        sign: 1 where a larger monitored value is better, else -1.
        time_saved: Share of the time that a boundary saves over another one in some rounds; None: not worth trying.
    """

    def __init__(
        self,
        study: BoundaryStudy,
        window: int | None,
        max_rounds: int,
        sign: float,
        time_saved: Callable[[Boundary, Boundary, range], float | None],
    ) -> None:
        self._study = study
        self._start = len(study.trials) - 1
        self._base = study.trials[-1].value or 0.0
        self._window = window
        self._max_rounds = max_rounds
        self._sign = sign
        self._time_saved = time_saved
        self._standing = _Standing(self._start, [])
        self._told: dict[str, float] = {}
        self.reason = "the boundary to start with"

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
            round_number: From 1; 0 for the evaluation before.
            seconds: How long the round lasted, in rounds of the same cohort under the incumbent.
            value: The monitored value as logged, or None where the round was not evaluated.
        """
        standing = self._standing
        standing.rounds += 1
        standing.seconds += seconds
        if self._window is None or value is None:
            return
        if not math.isfinite(value):
            failed = standing.challenger if standing.on_trial else None
            self.begin_anew("the monitored value was no number", fails=True)
            self.reason += "" if failed is None else f", so trial {failed} failed"
            return
        standing.curve.append(value)
        begun = standing.begun
        if begun is not None and standing.rounds < self._window:
            return
        took = standing.seconds
        standing.begun, standing.rounds, standing.seconds = value, 0, 0.0
        if begun is not None and took > 0:
            self._close(Window(took, begun, value), round_number)

    def begin_anew(self, why: str, fails: bool = False) -> None:
        """What is under way can be compared with nothing: a trial that is on waits for another window, or fails."""
        standing = self._standing
        self.reason = f"trial {standing.incumbent}, the incumbent: {why}"
        if standing.on_trial and fails:
            self._drop_challenger(None)
        standing.on_trial = False
        standing.before = standing.tried = standing.begun = None
        standing.rounds, standing.seconds = 0, 0.0
        if not fails and standing.curve:
            standing.begun = standing.curve[-1]

    def restart(self, start: Boundary, why: str) -> None:
        """Take up another boundary to start with, unless the run has found a better one by then.

        Args:
            start: The boundary, from corrected facts.
            why: For the log.
        """
        standing = self._standing
        if self._window is None or standing.incumbent != self._start or start == self.incumbent.boundary:
            return
        value = self.incumbent.value
        self._drop_challenger(None)
        self._start = standing.incumbent = self._study.add(start, value).number
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
            "start": self._start,
            "base": self._base,
            "standing": standing,
            "told": dict(self._told),
            "reason": self.reason,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._study.trials = [Trial.from_json(each) for each in state["trials"]]
        self._start, self._base = state["start"], state["base"]
        held = dict(state["standing"])
        for name in ("before", "tried"):
            held[name] = None if held[name] is None else Window(**held[name])
        self._standing = _Standing(**{**held, "curve": list(held["curve"])})
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
            said = self._judge(standing.challenger, standing.tried, standing.before, window)
            if standing.before is None:
                self.reason = said
                return
        standing.before = window
        self.reason = "; ".join(filter(None, (said, self._challenge(round_number))))

    def _judge(self, challenger: int, tried: Window, before: Window, after: Window) -> str:
        """Drop or crown the challenger; says which."""
        standing = self._standing
        verdict = compare(tried, before, after, standing.curve, self._sign)
        # Objectives are told from the incumbent's on, so that all trials of a study stand on one scale.
        value = (self.incumbent.value or 0.0) + verdict.objective
        self._told = {"judged": float(challenger), "objective": value - self._base}
        self._drop_challenger(value)
        by = f"{verdict.deviations:+.1f} standard deviations"
        if not verdict.takes_over(standing.saved > 0):
            return f"trial {challenger} did not train faster ({by}): dropped"
        # This was the window of the one that was beaten; the next is compared with the winner's own.
        standing.incumbent, standing.before = challenger, None
        how = "with shorter rounds" if standing.saved > 0 else "with longer rounds"
        return f"trial {challenger} takes over {how}: its progress per virtual second over the incumbent's is {by}"

    def _drop_challenger(self, value: float | None) -> None:
        standing = self._standing
        if standing.challenger is not None:
            self._study.tell(standing.challenger, value)
        standing.challenger, standing.on_trial, standing.tried = None, False, None

    def _challenge(self, round_number: int) -> str:
        """Give the next window to a challenger, if there is time to judge it and one that makes a difference."""
        standing = self._standing
        assert self._window is not None
        # One round more than the two windows, so that the verdict is logged with it.
        if self._max_rounds - round_number <= 2 * self._window:
            return f"trial {standing.incumbent}, the incumbent, to the end: no time to judge another"
        incumbent, rounds = self.incumbent.boundary, range(round_number + 1, round_number + 1 + self._window)
        if standing.challenger is None:
            asked = self._study.ask(incumbent, standing.asked)
            standing.asked += 1
            saved = self._time_saved(asked, incumbent, rounds)
            if saved is None:
                return f"trial {standing.incumbent}, the incumbent: {asked} is not worth trying in the next rounds"
            standing.challenger = self._study.add(asked, None).number
        else:
            saved = self._time_saved(self._study.trials[standing.challenger].boundary, incumbent, rounds)
            if saved is None:
                return f"trial {standing.challenger} is not worth trying in the next rounds: it waits"
        standing.on_trial, standing.saved = True, saved
        return f"trial {standing.challenger} challenges trial {standing.incumbent}"
