"""Whether a storage's trials are of the study that is searched here: anybody may have written them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.search_space import Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_ATTRIBUTES = {"reason": str, "traceback": str, "run_dir": str, "worker": str, "starts": int}
ROUND = "round "
"""Begins the names of the attributes that hold a trial's values after a round."""


def check_trials(trials: Sequence[FrozenTrial], space: Space, num_objectives: int) -> None:
    """Refuse trials with values that this search cannot have given them.

    Raises:
        ConfigurationError: Of the first one.
    """
    from optuna.trial import TrialState

    for trial in trials:
        problem = _problem(trial, space, num_objectives, trial.state == TrialState.COMPLETE)
        if problem:
            raise ConfigurationError(
                f"its trial {trial.number} {problem}; it is damaged, or not of this search: give another --storage"
            )


def _problem(trial: FrozenTrial, space: Space, num_objectives: int, is_complete: bool) -> str:
    for parameter in space.parameters:
        if parameter.key not in trial.params:
            if is_complete:
                return f"has no {parameter.key}"
            continue
        given = trial.params[parameter.key]
        try:
            is_searched = parameter.choices is not None or _is_finite(given)
            parameter.value(given)
        except (LookupError, TypeError):
            is_searched = False
        if not is_searched:
            return f"has a {parameter.key} that is not searched"
    if is_complete and (len(trial.values) != num_objectives or not all(map(_is_finite, trial.values))):
        return f"has other values than {num_objectives} finite numbers"
    for name, value in trial.user_attrs.items():
        if not isinstance(value, _ATTRIBUTES.get(name, object)):
            return f"has a {name} that is a {type(value).__name__}"
        if name.startswith(ROUND) and not (name.removeprefix(ROUND).isdecimal() and _are_numbers(value)):
            return f"has no numbers for {name!r}"
    return ""


def _are_numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_finite, value.values()))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
