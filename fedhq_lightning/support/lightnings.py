"""The two packages that Lightning comes in, `lightning` and `pytorch_lightning`: the same classes, each with its own.

A user's classes may be of either. Ours are built on `lightning`, and the other package is only looked at where the user
has imported it. What asks "is this a LightningModule?" asks it here.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.overrides import is_overridden as _differs

_Kind = TypeVar("_Kind")
_OTHER_NAMES = {"lightning.pytorch.": "pytorch_lightning.", "lightning.fabric.": "lightning_fabric."}


def both(*kinds: type[_Kind]) -> tuple[type[_Kind], ...]:
    """Classes of `lightning` and, where it is imported, the same of `pytorch_lightning`: for `isinstance`.

    Args:
        kinds: Classes of `lightning.pytorch` or `lightning.fabric`, as they are defined there.
    """
    others = (others_of(kind) for kind in kinds)
    return (*kinds, *(each for each in others if each is not None))


def others_of(kind: type[_Kind]) -> type[_Kind] | None:
    """The class of `pytorch_lightning` that is `kind` there; None where that package is not imported, or has none."""
    for ours, others in _OTHER_NAMES.items():
        if kind.__module__.startswith(ours):
            module = sys.modules.get(others + kind.__module__.removeprefix(ours))
            return getattr(module, kind.__name__, None)
    raise ValueError(f"{kind.__module__}.{kind.__qualname__} is not of lightning")


def as_of(trainer: Any, kind: type[_Kind]) -> type[_Kind]:
    """`kind` as the package has it from which a Trainer comes."""
    other_trainer = others_of(pl.Trainer)
    if other_trainer is None or not isinstance(trainer, other_trainer):
        return kind
    return others_of(kind) or kind


class _OfBoth(type):
    """Makes a class that stands for `both` of one: in `isinstance`, `issubclass` and what jsonargparse reads."""

    kind: type

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, both(cls.kind))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, both(cls.kind))

    def __subclasses__(cls) -> list[type]:
        """Where jsonargparse looks for a class that is given by its last name alone: that is always `lightning`'s."""
        return [cls.kind]


def _of_both(kind: type) -> Any:
    """It goes by the name of `kind`, in messages and where help is asked for."""
    shown = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return _OfBoth(kind.__name__, (), {**shown, "kind": kind})


if TYPE_CHECKING:
    AnyModule = pl.LightningModule
    AnyDataModule = pl.LightningDataModule
    AnyLogger = Logger
else:
    AnyModule = _of_both(pl.LightningModule)
    AnyDataModule = _of_both(pl.LightningDataModule)
    AnyLogger = _of_both(Logger)


def lightnings_own(instance: Any) -> Any:
    """The class of Lightning's from which a module or data module comes, with Lightning's own methods.

    Args:
        instance: A LightningModule or LightningDataModule; where it comes from both packages, the first counts.

    Raises:
        ValueError: It is neither.
    """
    roots = both(pl.LightningModule) + both(pl.LightningDataModule)
    for each in type(instance).__mro__:
        if each in roots:
            return each
    raise ValueError(f"{type(instance).__name__} is neither a LightningModule nor a LightningDataModule")


def is_overridden(method: str, instance: Any) -> bool:
    """Whether a module or data module has a method of its own, as Lightning's function of this name tells.

    Args:
        method: Its name.
        instance: A LightningModule or LightningDataModule.
    """
    return bool(_differs(method, instance, lightnings_own(instance)))
