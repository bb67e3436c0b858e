"""What travels beside a model, such as control variates: tensors with names of their own in the same payload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from fedhq_lightning.types import StateDict

_PREFIX = "beside:"
_Value = TypeVar("_Value")


def named_beside(tensors: StateDict) -> StateDict:
    """By the names that they have in a payload."""
    return {_PREFIX + name: value for name, value in tensors.items()}


def model_of(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """The model of what travelled."""
    return {name: value for name, value in state.items() if not name.startswith(_PREFIX)}


def beside_of(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """What travelled beside it, by its own names."""
    return {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
