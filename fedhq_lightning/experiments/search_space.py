"""The search space: ranges and choices of recipe keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.recipe.keys import Place, locate, short_names, value_at, with_values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_RANGE_KEYS = ("low", "high", "log", "step")
_FIXED = {
    "trainer.monitor": "trials would not be comparable",
    "trainer.monitor_mode": "trials would not be comparable",
    "trainer.default_root_dir": "it is the study's folder",
    "trainer.logger": "every trial logs as the recipe says",
    "trainer.enable_progress_bar": "trials are quiet",
    "trainer.devices": "each trial runs in one process",
    "trainer.num_nodes": "each trial runs in one process",
}


@dataclass(frozen=True)
class Parameter:
    """One key that is searched.

    Attributes:
        key: As the user wrote it; its name in the study.
        place: Where it is in the resolved recipe.
        distribution: Optuna's.
        choices: Label in the study -> value in the recipe; None for a range.
    """

    key: str
    place: Place
    distribution: BaseDistribution
    choices: Mapping[Any, Any] | None

    def value(self, suggested: Any) -> Any:
        """The recipe's value for what the study holds."""
        return suggested if self.choices is None else self.choices[suggested]

    def candidates(self) -> list[Any]:
        """Both ends of a range, or every choice."""
        if self.choices is not None:
            return list(self.choices.values())
        return [self.distribution.low, self.distribution.high]  # type: ignore[attr-defined]  # a range has both

    def suggested_for(self, value: Any) -> Any:
        """What the study holds for a recipe's value.

        Raises:
            LookupError: The value is outside the search.
        """
        label = _label(value)
        if self.choices is not None:
            if label not in self.choices or type(self.choices[label]) is not type(value):
                raise LookupError(self.key)
            return label
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.distribution._contains(self.distribution.to_internal_repr(value)):
            raise LookupError(self.key)
        return value


@dataclass(frozen=True)
class Space:
    """The keys that are searched, in the order of the search section.

    Attributes:
        content: The resolved recipe.
        parameters: One a key.
    """

    content: Mapping[str, Any]
    parameters: tuple[Parameter, ...]

    def distributions(self) -> dict[str, BaseDistribution]:
        """By key, as `Study.ask` takes them."""
        return {each.key: each.distribution for each in self.parameters}

    def recipe(self, suggested: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of one trial.

        Args:
            suggested: What the study holds, by key.
        """
        return with_values(self.content, {each.place: each.value(suggested[each.key]) for each in self.parameters})

    def own_values(self) -> dict[str, Any] | None:
        """The recipe itself as a trial; None where one of its values is outside the search."""
        try:
            return {each.key: each.suggested_for(value_at(self.content, each.place)) for each in self.parameters}
        except LookupError:
            return None

    def start(self) -> dict[str, Any]:
        """The recipe with something in every searched place: its own value, else the first candidate."""
        return with_values(self.content, {each.place: self._first(each) for each in self.parameters})

    def variations(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """Key, value and recipe for every candidate, each alone in the place of the start's."""
        start = self.start()
        return [
            (each.key, value, with_values(start, {each.place: value}))
            for each in self.parameters
            for value in each.candidates()
            if value != value_at(start, each.place)
        ]

    def short_names(self) -> list[str]:
        """The keys for people, as short as tells them apart."""
        return short_names([each.key for each in self.parameters])

    def _first(self, parameter: Parameter) -> Any:
        own = value_at(self.content, parameter.place)
        return parameter.candidates()[0] if own is None else own


def make_space(content: Mapping[str, Any], search: Any) -> Space:
    """Check a search section against a recipe.

    Args:
        content: The resolved recipe.
        search: Key -> list of choices, or `{low, high, log, step}`.

    Raises:
        ConfigurationError: An unknown key, one that may not be searched, two for one place, or no such range.
    """
    if not isinstance(search, Mapping) or not search:
        raise ConfigurationError(
            "search: give recipe keys with their choices or ranges, such as model.lr: {low: 0.01, high: 0.3, log: true}"
        )
    parameters: list[Parameter] = []
    for key, given in search.items():
        try:
            place = locate(content, str(key))
            _check_free(str(key), place, parameters)
            parameters.append(_parameter(str(key), place, given, value_at(content, place)))
        except ConfigurationError as error:
            raise ConfigurationError(f"search: {error}") from error
    return Space(content, tuple(parameters))


def _check_free(key: str, place: Place, parameters: list[Parameter]) -> None:
    dotted = ".".join(map(str, place))
    if reason := _FIXED.get(dotted):
        raise ConfigurationError(f"{key} cannot be searched: {reason}")
    for other in parameters:
        shared = min(len(place), len(other.place))
        if place[:shared] == other.place[:shared]:
            raise ConfigurationError(f"{key} and {other.key} name the same place, or one is a part of the other")


def _parameter(key: str, place: Place, given: Any, own: Any) -> Parameter:
    from optuna.distributions import CategoricalDistribution

    if isinstance(given, Mapping):
        return Parameter(key, place, _range(key, given, own), None)
    if not isinstance(given, list) or not given:
        raise ConfigurationError(f"{key}: {given!r}; give a list of choices, or a range {{low, high, log, step}}")
    is_number = isinstance(own, int | float) and not isinstance(own, bool)
    values = [_as_number(value) if is_number and isinstance(value, str) else value for value in given]
    choices: dict[Any, Any] = {}
    for value in values:
        if _label(value) in choices:
            raise ConfigurationError(f"{key}: the choice {value!r} is there twice")
        choices[_label(value)] = value
    return Parameter(key, place, CategoricalDistribution(list(choices)), choices)


def _range(key: str, given: Mapping[Any, Any], own: Any) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    for name in given:
        if name not in _RANGE_KEYS:
            raise ConfigurationError(
                f"{key}: unknown key {name!r} of a range; allowed are {', '.join(_RANGE_KEYS)}"
                f"{nearest(str(name), _RANGE_KEYS)}"
            )
    if missing := [name for name in ("low", "high") if name not in given]:
        raise ConfigurationError(f"{key}: a range needs low and high; missing is {' and '.join(missing)}")
    numbers = {name: _as_number(given[name]) for name in ("low", "high", "step") if given.get(name) is not None}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ConfigurationError(f"{key}: {name} {given[name]!r} is not a number")
    low, high, step, log = numbers["low"], numbers["high"], numbers.get("step"), given.get("log", False)
    if not isinstance(log, bool):
        raise ConfigurationError(f"{key}: log {log!r}; allowed are true and false")
    if low >= high:
        raise ConfigurationError(f"{key}: low {low} must be less than high {high}")
    if step is not None and not 0 < step <= high - low:
        raise ConfigurationError(f"{key}: step {step} must be more than 0 and fit between low and high")
    if log and (low <= 0 or step is not None):
        raise ConfigurationError(f"{key}: with log, low must be more than 0 and there is no step")
    is_whole = all(isinstance(number, int) for number in numbers.values()) and not isinstance(own, float)
    if is_whole:
        whole = IntDistribution(int(low), int(high), log=log, step=int(step or 1))
        return whole
    return FloatDistribution(float(low), float(high), log=log, step=None if step is None else float(step))


def _as_number(value: Any) -> Any:
    """YAML reads 1e-3, without a point, as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _label(value: Any) -> Any:
    """What the study holds: Optuna keeps plain values only."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)
