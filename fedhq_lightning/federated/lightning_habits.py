"""What users of Lightning's `Trainer` are used to: taken where there is the same under another name, else told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe.lightning_names import ATTRIBUTES, instead_of

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}


def with_lightning_names(
    also: Mapping[str, str] | None = None, ignored: tuple[str, ...] = ()
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Let a method take Lightning's names of its arguments, and tell of those that it has no use for.

    Args:
        also: Lightning's name -> the method's own.
        ignored: Names of what does not matter here.

    Raises:
        ConfigurationError: By the method: an argument of Lightning's, and what there is instead.
    """
    renamed = dict(also or {})

    def decorate(method: Callable[_P, _T]) -> Callable[_P, _T]:
        own = inspect.signature(method).parameters

        @wraps(method)
        def told(*arguments: _P.args, **named: _P.kwargs) -> _T:
            given: dict[str, Any] = {}
            for name, value in named.items():
                if name in ignored or (name in renamed and value is None):
                    continue
                meant = renamed.get(name, name)
                if meant not in own and (instead := instead_of(name)):
                    raise ConfigurationError(instead)
                if meant in given:
                    raise ConfigurationError(
                        f"{method.__name__}: {name} and another of Lightning's names for it are given"
                    )
                given[meant] = value
            return method(*arguments, **given)

        return told

    return decorate


def plain_precision(precision: Any) -> Any:
    """Lightning's short names in full: 32 is "32-true", "bf16" is "bf16-mixed"."""
    return _PRECISIONS.get(str(precision), precision)


def callback_metrics(metrics: Mapping[str, float]) -> dict[str, Tensor]:
    """Metrics as Lightning's `callback_metrics` holds them.

    Args:
        metrics: As they are recorded: `fp/NAME`, `quantized/NAME`, `train/NAME`.

    Returns:
        The same, and `NAME` itself for what the float32 model or else training logged under it.
    """
    found = {name: torch.tensor(value) for name, value in metrics.items()}
    for kind in ("train/", "fp/"):
        found |= {name.removeprefix(kind): value for name, value in found.items() if name.startswith(kind)}
    return found


class LightningAttributes:
    """Tells of attributes of Lightning's `Trainer` what there is instead."""

    if not TYPE_CHECKING:  # type checkers shall go on to find misspelt names

        def __getattr__(self, name: str) -> Any:
            instead = f": {ATTRIBUTES[name]}" if name in ATTRIBUTES else ""
            raise AttributeError(f"{type(self).__name__} has no {name!r}{instead}", name=name, obj=self)
