"""Allocators as callbacks, for `FederatedTrainer` and for `FederatedAveraging` in `lightning.pytorch.Trainer` alike.

Each is the allocator of `fedhq_lightning.allocation` and nothing more: the Trainer sees a callback, the round an
allocator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl

from fedhq_lightning import allocation
from fedhq_lightning.allocation import AllocationContext
from fedhq_lightning.allocation.hybrid import HybridAllocator as _HybridAllocator
from fedhq_lightning.drop_in.trainer_callback import TrainerCallback
from fedhq_lightning.drop_in.trainer_parts import callbacks_of
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.silos.silo_callback import SiloCallback

_FEWEST_SILOS = 8
"""With fewer, one silo more or less in qat is all that a boundary could be tried on."""


class AllocatorCallback(TrainerCallback):
    """Makes a callback of an allocator: `class Mine(AllocatorCallback, MyAllocator)`.

    `FederatedAveraging` calls the allocator's methods. The Trainer restores callbacks before the silos are known, so
    that a state given to `load_state_dict` before `begin` waits for it. An evaluation leaves the allocator as it is.
    """

    _is_waiting = True
    _is_evaluating = False
    _restored: Mapping[str, Any] = {}  # never changed in place

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait for `begin`, where there is a fit.

        Raises:
            ConfigurationError: A fit without `FederatedAveraging`, which alone asks allocators.
        """
        self._is_evaluating = stage != "fit"
        if self._is_evaluating:
            return
        if not any(isinstance(each, SiloCallback) for each in callbacks_of(trainer)):
            raise ConfigurationError(
                f"{type(self).__name__} without FederatedAveraging: nobody would ask it; add "
                "fedhq_lightning.callbacks.FederatedAveraging(scheme='w4a8') and strategy='fedhq' (which importing any "
                "name from fedhq_lightning.callbacks registers), or use FederatedTrainer"
            )
        self._is_waiting, self._restored = True, {}

    def begin(self, context: AllocationContext) -> None:
        """Take in the run, then what a checkpoint held."""
        super().begin(context)  # type: ignore[misc]  # the allocator's, next in line
        self._is_waiting = self._is_evaluating = False
        restored = self._restored
        if restored:
            self._restored = {}
            self.load_state_dict(restored)

    def state_dict(self) -> dict[str, Any]:
        """The allocator's state."""
        if self._is_waiting:
            return dict(self._restored)
        return self._allocator.state_dict(cast(allocation.Allocator, self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, at once or when the silos are known."""
        if self._is_evaluating:
            return
        if self._is_waiting:
            self._restored = state
        else:
            self._allocator.load_state_dict(cast(allocation.Allocator, self), state)

    @property
    def is_resumed(self) -> bool:
        """Whether a checkpoint's state waits for `begin`."""
        return self._is_waiting and bool(self._restored)

    @property
    def _allocator(self) -> type[allocation.Allocator]:
        """The class whose methods `Callback` hides."""
        line = type(self).__mro__
        return next(each for each in line[line.index(pl.Callback) :] if issubclass(each, allocation.Allocator))


class HybridAllocator(AllocatorCallback, _HybridAllocator):
    """Who trains in `ptq` and who in `qat`, by a boundary: `fedhq_lightning.allocation.HybridAllocator`.

    Silos of `lightning.pytorch.Trainer` take all their steps, whatever `least_work` says. Among fewer than 8 of them
    the boundary chosen before round 1 stays.
    """

    _is_in_trainer = _is_coarse_here = False
    _least_work_elsewhere: float | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """See that clients are silos.

        Raises:
            ConfigurationError: A fit without `FederatedAveraging`.
        """
        super().setup(trainer, pl_module, stage)
        self._is_in_trainer = True

    def begin(self, context: AllocationContext) -> None:
        """Analyse, choose the coarse boundary, and say where it stays."""
        self._is_coarse_here = self._is_in_trainer and self.fine and len(context.client_ids) < _FEWEST_SILOS
        if self._is_coarse_here:
            self.fine = False
        if self._is_in_trainer and self._least_work_elsewhere is None:
            self._least_work_elsewhere, self.least_work = self.least_work, 1.0
        super().begin(context)
        words = f" With fewer than {_FEWEST_SILOS} silos the boundary stays coarse."
        if self._is_coarse_here and words not in self.explanation:
            self.explanation += words

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Be as before the fit."""
        self.fine = self.fine or self._is_coarse_here
        if self._least_work_elsewhere is not None:
            self.least_work, self._least_work_elsewhere = self._least_work_elsewhere, None
        self._is_in_trainer = self._is_coarse_here = False


class FixedAllocator(AllocatorCallback, allocation.FixedAllocator):
    """Gives a client one mode in all rounds: `fedhq_lightning.allocation.FixedAllocator`."""


class LateQatAllocator(AllocatorCallback, allocation.LateQatAllocator):
    """QAT for all at the end of the run, in PTQ's time: `fedhq_lightning.allocation.LateQatAllocator`."""


class FreeQatAllocator(AllocatorCallback, allocation.FreeQatAllocator):
    """QAT for whom it costs no round time: `fedhq_lightning.allocation.FreeQatAllocator`."""


class MatchedRandomAllocator(AllocatorCallback, allocation.MatchedRandomAllocator):
    """QAT at random, as often as in another run: `fedhq_lightning.allocation.MatchedRandomAllocator`."""
