"""Base of our callbacks, for a Trainer of `lightning` and for one of `pytorch_lightning`."""

from __future__ import annotations

from inspect import Signature, signature
from typing import Any, ClassVar, Self

import lightning.pytorch as pl

from fedhq_lightning.support.lightnings import both


class TrainerCallback(pl.Callback):
    """A callback that either package's Trainer and LightningCLI take for their own.

    Where `pytorch_lightning` is imported when a class is made of this one, or an object, its Callback becomes a base
    too. Both are empty hooks of the same names.
    """

    __signature__: ClassVar[Signature]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _take_bases()
        # What is told of a class is what its __init__ takes, and not __new__ here.
        whole = signature(cls.__init__)
        cls.__signature__ = whole.replace(parameters=list(whole.parameters.values())[1:])

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Make one, whatever its class is made with."""
        _take_bases()
        return super().__new__(cls)


def _take_bases() -> None:
    bases = both(pl.Callback)
    if TrainerCallback.__bases__ != bases:
        TrainerCallback.__bases__ = bases
