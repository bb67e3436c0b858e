"""What a round's checkpoint holds, looked at part by part before a run goes on from it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.support.views import DEPLOYED
from fedhq_lightning.types import MODES, StateDict

_MOST_NAMED = 3


def is_model(value: Any) -> bool:
    """Whether it is a module's state: dense tensors by name."""
    return _is_named(value) and all(
        isinstance(each, Tensor) and each.layout == torch.strided and each.device.type == "cpu"
        for each in value.values()
    )


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(type(name) is str for name in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_duration(value: Any) -> bool:
    return _is_number(value) and 0 <= value < math.inf


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _are_positions(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.dim() == 1


def _are_rounds(value: Any) -> bool:
    return type(value) is list and all(map(_is_count, value))


def _are_seconds(value: Any) -> bool:
    return _is_named(value) and all(_is_duration(each) for each in value.values())


def _are_states(value: Any) -> bool:
    return _is_named(value) and all(_is_named(each) for each in value.values())


def _are_norms(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and all(type(each) is float and each >= 0 for each in value)


def _are_offences(value: Any) -> bool:
    return type(value) is dict and all(
        _is_count(position) and type(held) is tuple and len(held) == 2 and all(map(_is_count, held))
        for position, held in value.items()
    )


def _are_counts(value: Any) -> bool:
    return type(value) is dict and all(_is_count(position) and _is_count(held) for position, held in value.items())


def _are_modes(value: Any) -> bool:
    return type(value) is dict and all(_is_count(position) and mode in MODES for position, mode in value.items())


def _are_in_flight(value: Any) -> bool:
    return type(value) is list and all(
        type(each) is dict
        and each.keys() == {"position", "arrives", "record"}
        and _is_count(each["position"])
        and _is_number(each["arrives"])
        and type(each["record"]) is dict
        for each in value
    )


_Parts: TypeAlias = Mapping[str, tuple[Callable[[Any], bool], str]]
"""By name: whether a value can be that part, and in words what it has to be."""

_MODEL = (is_model, "tensors by name")
_MODEL_OR_NONE = (_or_none(is_model), "tensors by name, or nothing")
_NAMED = (_is_named, "values by name")
_COUNT = (_is_count, "a whole number from 0")
_BOOL = (_is_bool, "true or false")
_PARTS: _Parts = {
    "described": _NAMED,
    "state": _NAMED,
    "aggregator": _NAMED,
    "allocator": _NAMED,
    "callbacks": (_are_states, "values by name of each callback"),
    "evaluator": _NAMED,
    "wall_phases": (_are_seconds, "seconds by name"),
}
_SINCE: Mapping[str, Any] = {"evaluator": {}, "wall_phases": {}}
"""What checkpoints of earlier versions lack -> what it was then."""
_STATE: _Parts = {
    "global_state": _MODEL,
    "averaged_state": _MODEL_OR_NONE,
    "round": _COUNT,
    "best_round": (_or_none(_is_count), "a whole number from 0, or nothing"),
    "best_value": (_or_none(_is_number), "a number, or nothing"),
    "best_state": _MODEL_OR_NONE,
    "best_rounds": (_are_rounds, "whole numbers from 0"),
    "stopped": _BOOL,
    "reached": (_are_positions, "whole numbers in one row"),
    "usual_norms": (_or_none(_are_norms), "two numbers from 0, or nothing"),
    "offences": (_are_offences, "two whole numbers from 0 by position"),
    "has_statistics": _BOOL,
    "in_flight": (_are_in_flight, "clients with the times of their arrival"),
    "private_steps": (_are_counts, "whole numbers from 0 by position"),
    "last_modes": (_are_modes, "a mode by position"),
}
_STATE_SINCE: Mapping[str, Any] = {
    "best_rounds": [],
    "reached": torch.empty(0, dtype=torch.int64),
    "usual_norms": None,
    "offences": {},
    "has_statistics": False,
    "in_flight": [],
    "private_steps": {},
    "last_modes": {},
}
_DESCRIBED: _Parts = {"trainer": _NAMED, "recipe": _NAMED}
_TRAINER: _Parts = {
    "max_rounds": _COUNT,
    "eval_every_n_rounds": (lambda value: _is_count(value) and value > 0, "a whole number from 1"),
}


def read_round(file: Path, odd: Collection[str] = ()) -> dict[str, Any]:
    """Where a run stood.

    Args:
        file: A checkpoint of a round.
        odd: Names in the global model that may hold what is no number.

    Raises:
        ConfigurationError: It cannot be read, is something else, lacks a part or has another kind of thing in its
            place, or its global model is not finite.
    """
    saved = load_checkpoint(file)
    if "described" not in saved:
        raise ConfigurationError(f"{file}: one round's model, not where a run stood; give a run directory")
    saved = {**copy.deepcopy(_SINCE), **saved}
    _check(file, "", saved, _PARTS)
    saved["state"] = {**copy.deepcopy(_STATE_SINCE), **saved["state"]}
    _check(file, "state.", saved["state"], _STATE)
    if unknown := saved["state"].keys() - _STATE.keys():
        raise unfit(file, f"it holds {', '.join(sorted(unknown))} in state, which this version does not know")
    _check(file, "described.", {"recipe": {}, **saved["described"]}, _DESCRIBED)
    _check(file, "described.trainer.", saved["described"]["trainer"], _TRAINER)
    for part in ("global_state", "averaged_state"):
        _check_values(file, saved["state"][part] or {}, odd)
    return saved


def check_model(file: Path, saved: Mapping[str, Any], initial: StateDict) -> None:
    """Refuse a checkpoint whose models are not those of a module.

    Args:
        file: The checkpoint.
        saved: As `read_round` gave it.
        initial: The module's state at the start of a run.

    Raises:
        ConfigurationError: Names, shapes or types differ.
    """
    for part in ("global_state", "averaged_state", "best_state"):
        found = difference(saved["state"][part] or initial, initial)
        if found is not None:
            raise ConfigurationError(
                f"{file}: its model is not that of this module: {found}; resume with the module as it was, or start a "
                "new run"
            )


def difference(model: StateDict, initial: StateDict, *, in_types: bool = True) -> str | None:
    """In words, in what a model of a run is another one than a module's, or None.

    Args:
        model: May have statistics of its deployed view.
        initial: The module's state.
        in_types: Whether to look at dtypes too.
    """
    own = {name for name in model if not name.startswith(DEPLOYED)}
    if lacking := sorted(initial.keys() - own):
        return f"it lacks {_some(lacking)}"
    for name, value in model.items():
        there = initial.get(name.removeprefix(DEPLOYED))
        if there is None:
            return f"the module has no {name}"
        if value.shape != there.shape or (in_types and value.dtype != there.dtype):
            return f"{name} was {_kind(value)}, is now {_kind(there)}"
    return None


def _check(file: Path, prefix: str, held: Mapping[str, Any], parts: _Parts) -> None:
    for name, (fits, words) in parts.items():
        if name not in held:
            raise unfit(file, f"{prefix}{name} is missing")
        if not fits(held[name]):
            raise unfit(file, f"{prefix}{name} must be {words}, not {type(held[name]).__name__}")


def _check_values(file: Path, model: StateDict, odd: Collection[str]) -> None:
    for name, value in model.items():
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise unfit(file, f"{name} is larger than what the file holds of it")
    floats = {name: value for name, value in model.items() if name not in odd and value.is_floating_point()}
    if names := [name for name, value in floats.items() if not value.isfinite().all()]:
        raise unfit(file, f"its global model holds values that are no numbers, in {_some(names)}")


def unfit(file: Path, what: str) -> ConfigurationError:
    """What to say of a checkpoint that is whole, and still nothing to go on from."""
    return ConfigurationError(f"{file}: not fit to go on from: {what}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" if names[_MOST_NAMED:] else "")


def _kind(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
