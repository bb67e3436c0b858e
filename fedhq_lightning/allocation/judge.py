"""Whether a trial's boundary beat the incumbent's: a pure function of what was logged.

Progress decays over training, so a trial's window of rounds is compared with the incumbent's windows just before and
just after it: what decays steadily cancels. Accuracy jumps from round to round, so a difference counts only beyond
noise, which is read off the logged curve itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

BEATEN_BEYOND = 3.0
"""Standard deviations of noise by which a challenger must be ahead, over all its windows together. Many are tried, each
more than once, and the noise itself is estimated, so two would let chance win in half of the longer runs."""
PROMISING_BEYOND = 1.0
"""What earns a challenger another window."""
_PRECISION = 2.0**-23
"""Of a logged value, relative: metrics are float32 as a rule."""


@dataclass(frozen=True)
class Window:
    """Some rounds under one boundary, between two evaluations.

    Attributes:
        seconds: Virtual, > 0.
        gain: Change of the monitored value, positive where it improved. NaN where it was not a number.
    """

    seconds: float
    gain: float


@dataclass(frozen=True)
class Verdict:
    """What one challenger's window says.

    Attributes:
        objective: Progress per virtual second over the incumbent's, minus 1: 0 is no difference; cut off at 5 either
            way. What the study learns from. NaN where a value was no number.
        ahead: Metric gained beyond what the incumbent would have gained in the same virtual time.
        variance: Of `ahead`, from the noise of single evaluations.
    """

    objective: float
    ahead: float
    variance: float


def compare(challenger: Window, before: Window, after: Window, noise: float) -> Verdict:
    """Judge a challenger's window by the incumbent's windows around it.

    Args:
        challenger: The trial's window.
        before: The incumbent's window before it.
        after: The one after it.
        noise: Standard deviation of one evaluation of the metric.

    Returns:
        The verdict; NaN throughout where a gain is NaN.
    """
    rate = 0.5 * (before.gain / before.seconds + after.gain / after.seconds)
    ahead = challenger.gain - rate * challenger.seconds
    # A window's gain is a difference of two evaluations. Neighbours share one, which adds a covariance to each pair;
    # leaving that out would understate the noise, so it is counted: the four evaluations enter with these weights.
    first = 0.5 * challenger.seconds / before.seconds
    last = 0.5 * challenger.seconds / after.seconds
    variance = noise**2 * (first**2 + (1 + first) ** 2 + (1 + last) ** 2 + last**2)
    scale = (abs(before.gain) + abs(after.gain)) / (before.seconds + after.seconds)
    if not math.isfinite(ahead):
        return Verdict(math.nan, math.nan, math.nan)
    # Where nothing moves, noise is the scale: else the study would learn from divisions by almost nothing.
    scale = max(scale, noise / challenger.seconds)
    objective = ahead / challenger.seconds / scale if scale > 0 else 0.0
    return Verdict(max(-5.0, min(5.0, objective)), ahead, variance)


def noise_of(values: Sequence[float]) -> float:
    """Standard deviation of single evaluations around a smooth curve.

    From second differences, which a steady trend does not reach: of independent noise they have 6 times the variance.
    The median makes single jumps harmless.

    Args:
        values: The logged curve, in order; numbers that are not finite are left out.

    Returns:
        The estimate, no less than the last digit of a float32; infinite for less than four values, which tell nothing.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 4:
        return math.inf
    second = [abs(a - 2 * b + c) for a, b, c in zip(finite, finite[1:], finite[2:], strict=False)]
    return max(1.4826 * median(second) / math.sqrt(6), _PRECISION * max(map(abs, finite)))


def confidence(verdicts: Sequence[Verdict]) -> float:
    """By how many standard deviations a challenger is ahead, over all its windows; 0 where that is not known."""
    known = [each for each in verdicts if math.isfinite(each.ahead) and math.isfinite(each.variance)]
    variance = sum(each.variance for each in known)
    ahead = sum(each.ahead for each in known)
    if not known:
        return 0.0
    return ahead / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, ahead) if ahead else 0.0
