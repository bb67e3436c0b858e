"""How far an optimizer's steps go: what a gradient counts for, with momentum."""

from collections.abc import Mapping
from typing import Any


class StepLength:
    """Lengths of one local fit's steps, in learning rates: how far each would go if all gradients were 1.

    With momentum a gradient is in all later steps too, so they get longer. An optimizer without that word in its
    settings, such as Adam, is taken for one without momentum.

    Source: Wang et al. 2020, section 4.1: the lengths sum to |a_i|.
    """

    def __init__(self) -> None:
        self._velocity = 0.0

    def next(self, group: Mapping[str, Any]) -> float:
        """Of the step that follows, given the settings of the optimizer's group."""
        momentum = float(group.get("momentum") or 0.0)
        is_damped = momentum and self._velocity  # torch damps neither the first gradient nor those without momentum
        self._velocity = momentum * self._velocity + 1.0 - (float(group.get("dampening") or 0.0) if is_damped else 0.0)
        return 1.0 + momentum * self._velocity if group.get("nesterov") else self._velocity


def fit_length(group: Mapping[str, Any], num_steps: int) -> float:
    """Of a fit of so many steps, |a_i|.

    Args:
        group: Settings of the optimizer's group.
        num_steps: Optimizer steps.
    """
    steps = StepLength()
    return sum(steps.next(group) for _ in range(num_steps))
