"""Whether a boundary makes the model better faster than another one, from what three windows of rounds logged."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

LONGER_BEYOND = 2.0
"""Standard deviations by which a challenger must be ahead that made rounds longer than the incumbent's."""
SHORTER_BEHIND = 1.0
"""Standard deviations by which one may be behind that made them shorter: what that saves is certain."""
_LEAST_ERROR = 1e-3
_PRECISION = 2.0**-24
_MOST = 2.0


@dataclass(frozen=True)
class Window:
    """Some rounds under one boundary.

    Attributes:
        seconds: How long they lasted, > 0, in a unit of virtual time that all windows share.
        begun: Monitored value before them.
        ended: After them.
    """

    seconds: float
    begun: float
    ended: float


@dataclass(frozen=True)
class Verdict:
    """What a challenger's window says.

    Attributes:
        objective: Progress per virtual second over the incumbent's, minus 1: 0 is no difference, 1 is twice as fast;
            cut off at 2 either way. What the study learns from.
        deviations: Standard deviations, of the noise of single evaluations, by which the challenger is ahead.
    """

    objective: float
    deviations: float

    def takes_over(self, is_shorter: bool) -> bool:
        """Whether the challenger is to be the incumbent, by whether it makes rounds shorter."""
        return self.deviations >= (-SHORTER_BEHIND if is_shorter else LONGER_BEYOND)


def compare(challenger: Window, before: Window, after: Window, curve: Sequence[float], sign: float) -> Verdict:
    """Judge a challenger's window by the incumbent's windows around it.

    Training takes a share of the error away per unit of time, so progress is measured in the error's logarithm where
    the metric has one (see `scale_of`). What decays steadily cancels between the windows before and after.

    Args:
        challenger: The trial's window.
        before: The incumbent's window before it.
        after: The one after it.
        curve: All values logged so far, finite, in order.
        sign: 1 where a larger value is better, else -1.
    """
    scaled = scale_of(curve, sign)
    noise = noise_of([scaled(value) for value in curve])

    def gain(window: Window) -> float:
        return scaled(window.ended) - scaled(window.begun)

    rate = 0.5 * (gain(before) / before.seconds + gain(after) / after.seconds)
    ahead = gain(challenger) - rate * challenger.seconds
    # A window's gain is a difference of two evaluations, and neighbours share one: the four enter with these weights.
    first = 0.5 * challenger.seconds / before.seconds
    last = 0.5 * challenger.seconds / after.seconds
    deviation = noise * math.sqrt(first**2 + (1 + first) ** 2 + (1 + last) ** 2 + last**2)
    # Where nothing moves, noise is the scale: else the study would learn from divisions by almost nothing.
    usual = max(abs(rate) * challenger.seconds, deviation)
    objective = max(-_MOST, min(_MOST, ahead / usual)) if usual > 0 else 0.0
    return Verdict(objective, ahead / deviation if deviation > 0 else 0.0)


def scale_of(curve: Sequence[float], sign: float) -> Callable[[float], float]:
    """The scale on which progress is measured; more is better.

    Args:
        curve: The values logged so far.
        sign: 1 where a larger value is better, else -1.

    Returns:
        Minus the logarithm of 1 - value for shares (0 to 1, larger is better), of the value for positive ones of which
        smaller is better; else the value times the sign.
    """
    if sign > 0 and all(0 <= value <= 1 for value in curve):
        return lambda value: -math.log(max(1 - value, _LEAST_ERROR))
    if sign < 0 and all(value > 0 for value in curve):
        return lambda value: -math.log(value)
    return lambda value: sign * value


def noise_of(values: Sequence[float]) -> float:
    """Standard deviation of single evaluations around a smooth curve.

    From second differences, which a steady trend does not reach: of independent noise they have 6 times the variance.
    The median makes single jumps harmless.

    Args:
        values: The logged curve, finite, in order.

    Returns:
        The estimate, no less than the last digit of a float32; infinite for less than four values, which tell nothing.
    """
    if len(values) < 4:
        return math.inf
    second = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return max(1.4826 * median(second) / math.sqrt(6), _PRECISION * max(map(abs, values)))
