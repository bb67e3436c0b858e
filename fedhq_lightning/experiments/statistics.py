"""What is computed from curves and from pairs of runs. Pure; scipy is imported where p values are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

WINDOW = 3
"""Evaluations in a mean: one alone is noisy."""
_CONFIDENCE = 0.95


def trailing_means(values: Sequence[float], window: int = WINDOW) -> list[float | None]:
    """Mean of each value and those before it.

    Args:
        values: One an evaluation, in order.
        window: How many; a run with fewer evaluations has a mean over all of them.

    Returns:
        As many; None before the first window is full.
    """
    window = min(window, len(values))
    return [None if end < window else fmean(values[end - window : end]) for end in range(1, len(values) + 1)]


def final_mean(values: Sequence[float], window: int = WINDOW) -> float:
    """Mean of the last `window` values, of all where there are fewer; NaN for none."""
    return fmean(values[-window:]) if values else math.nan


def value_at(times: Sequence[float], values: Sequence[float], at: float, window: int = WINDOW) -> float:
    """What had been reached at a time: the mean of the last evaluations until then, not of the best.

    Args:
        times: (n,) when each evaluation was there, ascending. The first may be that of the untrained model, at 0.
        values: (n,).
        at: The time. An evaluation at this very time counts, up to rounding.
        window: Evaluations in the mean. Those at time 0 count only where there is no later one yet.

    Returns:
        The mean of the last `window` evaluations, of fewer where there are fewer; NaN where there is none.
    """
    known = [(time, value) for time, value in zip(times, values, strict=True) if time <= at * (1 + 1e-9)]
    trained = [value for time, value in known if time > 0]
    return final_mean(trained or [value for _, value in known], window)


@dataclass(frozen=True)
class Duration:
    """How long something took, or how long at least.

    Attributes:
        seconds: Until it was reached; where it was not, the length of the run.
        is_censored: Whether it was not reached.
    """

    seconds: float
    is_censored: bool = False


def time_to(
    times: Sequence[float], values: Sequence[float], target: float, larger_is_better: bool = True, window: int = WINDOW
) -> Duration:
    """When the trailing mean first reached a target.

    Args:
        times: (n,) when each evaluation of a trained model was there, ascending.
        values: (n,).
        target: What is to be reached.
        larger_is_better: Whether reaching it means not less, or not more.
        window: Evaluations in the mean.
    """
    for time, mean in zip(times, trailing_means(values, window), strict=True):
        if mean is not None and (mean >= target if larger_is_better else mean <= target):
            return Duration(time)
    return Duration(times[-1] if times else 0.0, is_censored=True)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation.

    Attributes:
        mean: NaN for no values.
        deviation: Sample standard deviation (n - 1); 0 for fewer than two.
        count: Values.
        num_censored: How many of them are lower bounds; with any, so is the mean.
    """

    mean: float
    deviation: float
    count: int
    num_censored: int = 0

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of plain values; NaN where one of them is no finite number."""
        if not values or not all(map(math.isfinite, values)):
            return cls(math.nan, math.nan if values else 0.0, len(values))
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))

    @classmethod
    def of_durations(cls, durations: Sequence[Duration]) -> Spread:
        """That of durations, those not reached with the length of their run."""
        spread = cls.of([each.seconds for each in durations])
        return cls(spread.mean, spread.deviation, spread.count, sum(each.is_censored for each in durations))


@dataclass(frozen=True)
class Difference:
    """Of pairs: the first minus the second.

    Attributes:
        mean: Mean difference; NaN without pairs.
        deviation: Sample standard deviation of the differences.
        count: Pairs.
        low: Lower end of the t interval at 95 %; NaN below three pairs.
        high: Upper end.
        p_t: Two-sided p of the paired t test; NaN below three pairs.
        p_wilcoxon: Two-sided exact p of Wilcoxon's signed-rank test; NaN below five pairs, where it could never be
            smaller than 0.125.
    """

    mean: float
    deviation: float
    count: int
    low: float
    high: float
    p_t: float
    p_wilcoxon: float

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two series value by value.

    Args:
        first: (n,).
        second: (n,), what it is compared with, in the same order.

    Raises:
        ValueError: Of other lengths.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    count, spread = len(differences), Spread.of(differences)
    nan = math.nan
    if count < 3:
        return Difference(spread.mean, spread.deviation, count, nan, nan, nan, nan)
    from scipy.stats import t

    low = high = spread.mean
    p_t = 0.0 if spread.mean else 1.0
    if error := spread.deviation / math.sqrt(count):
        low, high = map(float, t.interval(_CONFIDENCE, count - 1, spread.mean, error))
        p_t = 2 * float(t.sf(abs(spread.mean) / error, count - 1))
    wilcoxon = signed_rank_p(differences) if count >= 5 else nan
    return Difference(spread.mean, spread.deviation, count, low, high, p_t, wilcoxon)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; exact for as many as are compared here, with ties too.

    Differences of 0 are left out, as Wilcoxon did.
    """
    from scipy.stats import wilcoxon

    found = [each for each in differences if each]
    return float(wilcoxon(found).pvalue) if found else 1.0


@dataclass(frozen=True)
class Ratio:
    """Of paired durations: the first over the second.

    Attributes:
        mean: Geometric mean over the pairs in which both reached the target; NaN without such a pair.
        low: Lower end of its t interval at 95 %; NaN below three such pairs.
        high: Upper end.
        count: Those pairs.
        first_censored: Pairs left out in which the first did not reach it: there the ratio is larger than any number.
        second_censored: Pairs left out in which only the second did not: there it is smaller than any number.
    """

    mean: float
    low: float
    high: float
    count: int
    first_censored: int
    second_censored: int


def paired_ratio(first: Sequence[Duration], second: Sequence[Duration]) -> Ratio:
    """Compare two series of durations pair by pair.

    Raises:
        ValueError: Of other lengths.
    """
    pairs = list(zip(first, second, strict=True))
    reached = [(one, other) for one, other in pairs if not one.is_censored and not other.is_censored]
    usable = [(one.seconds, other.seconds) for one, other in reached if one.seconds > 0 and other.seconds > 0]
    logs = paired_difference([math.log(one) for one, _ in usable], [math.log(other) for _, other in usable])
    return Ratio(
        math.exp(logs.mean),
        math.exp(logs.low),
        math.exp(logs.high),
        len(usable),
        sum(one.is_censored for one, _ in pairs),
        sum(other.is_censored and not one.is_censored for one, other in pairs),
    )
