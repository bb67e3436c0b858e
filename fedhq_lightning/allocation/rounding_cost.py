"""Whether rounding is seen to cost anything, by what was logged.

`qat` is there to win back what a model loses by being rounded to the scheme. How much that is, every evaluation tells
for nothing: the global model is measured in float32 and as deployed, on the same data, so their difference is less
noisy than either. Of a share such as an accuracy, what counts is by which factor rounding multiplies the error: that
hardly changes while the model trains.
"""

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from fedhq_lightning.allocation.judge import scale_of

EVALUATIONS = 5
"""The last ones count: what rounding costs changes while a model trains."""
FEWEST = 3
"""Evaluations, before anything is said."""
BEYOND = 3.0
"""Standard errors by which the mean difference must exceed 0."""


class RoundingCost:
    """The monitored value in float32 less that of the same model as deployed, over the last evaluations.

    Args:
        sign: 1 where a larger monitored value is better, else -1.

    Attributes:
        is_seen: Whether the mean was positive beyond noise when that counted; stays so, since `qat` then takes the
            difference away.
    """

    def __init__(self, sign: float) -> None:
        self._sign = sign
        self._last: deque[tuple[float, float]] = deque(maxlen=EVALUATIONS)
        self.is_seen = False

    @property
    def mean(self) -> float | None:
        """Mean of the last evaluations, positive where rounding makes the model worse; None before there are three."""
        if len(self._last) < FEWEST:
            return None
        return self._sign * fmean(in_float - deployed for in_float, deployed in self._last)

    @property
    def is_known(self) -> bool:
        """Whether an evaluation ever measured both models."""
        return bool(self._last)

    def observe(self, metric_fp: float | None, metric_quantized: float | None, counts: bool = True) -> None:
        """Take in one round; one without both values, or where one is not a number, says nothing.

        Args:
            metric_fp: Of the model in float32.
            metric_quantized: Of the same model as deployed.
            counts: Whether `is_seen` may become true now; a model that has hardly trained says little of the later one.
        """
        if metric_fp is None or metric_quantized is None or not math.isfinite(metric_fp - metric_quantized):
            return
        self._last.append((metric_fp, metric_quantized))
        if counts and len(self._last) >= FEWEST:
            scaled = scale_of([value for pair in self._last for value in pair], self._sign)
            costs = [scaled(in_float) - scaled(deployed) for in_float, deployed in self._last]
            mean = fmean(costs)
            if mean > 0 and mean >= BEYOND * stdev(costs) / math.sqrt(len(costs)):
                self.is_seen = True

    def state_dict(self) -> dict[str, Any]:
        """What a resume goes on from, as plain values."""
        return {"last": [list(pair) for pair in self._last], "is_seen": self.is_seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._last = deque(((first, second) for first, second in state["last"]), maxlen=EVALUATIONS)
        self.is_seen = state["is_seen"]
