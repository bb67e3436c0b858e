"""Batch statistics of the deployed model that a callback of `lightning.pytorch.Trainer` reports and leaves behind."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.drop_in.copies import converted_copy, copy_of_batch, plain_copy
from fedhq_lightning.drop_in.steps_on_copies import in_training, training_step
from fedhq_lightning.federated.statistics_round import are_usable, pooled, under_all_names
from fedhq_lightning.local.batch_statistics import TooFewValuesError, batch_moments, tracked_layers
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.tensors import same_values
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.views import as_deployed
from fedhq_lightning.types import StateDict

_BATCHES_KEPT = 4


class DeployedStatistics:
    """Statistics of a deployed model, and of which weights they are.

    A float32 model has running statistics of its own forward passes; rounding moves what reaches its layers.
    """

    def __init__(self) -> None:
        self._of: StateDict = {}
        self._values: StateDict = {}

    def keep(self, pl_module: pl.LightningModule, values: StateDict) -> None:
        """Remember the statistics of the model that a module becomes once it is converted.

        Args:
            pl_module: As it is now.
            values: By their names in the module.
        """
        state = pl_module.state_dict()
        self._of = {name: state[name].detach().cpu().clone() for name in values}
        self._values = values

    def of(self, pl_module: pl.LightningModule) -> StateDict:
        """What was kept for the module, by its running statistics; empty where it was for other ones."""
        state = pl_module.state_dict()
        is_same = all(name in state and same_values(state[name].cpu(), value) for name, value in self._of.items())
        return self._values if is_same else {}

    def state_dict(self) -> dict[str, StateDict]:
        """Tensors by name."""
        return {"of": self._of, "values": self._values}

    def load_state_dict(self, state: Mapping[str, StateDict]) -> None:
        """Go on with what `state_dict` gave."""
        self._of, self._values = dict(state["of"]), dict(state["values"])


class RetakenStatistics(DeployedStatistics):
    """Takes them anew on the last batches of training, whatever the weights are.

    Args:
        scheme: The deployment grid.
    """

    def __init__(self, scheme: QuantScheme) -> None:
        super().__init__()
        self._scheme = scheme
        self._batches: deque[Any] = deque(maxlen=_BATCHES_KEPT)
        self._layers: dict[str, list[str]] | None = None
        self._has_failed = False
        self._trainer: Callable[[], pl.Trainer | None] = lambda: None

    def see(self, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep a batch, as the step got it, for a module that has such statistics and trains them.

        Args:
            pl_module: In training.
            batch: It; copied, for some loaders fill one buffer again and again.
            batch_idx: With the first of an epoch, and of a fit, the module is looked through.
        """
        if batch_idx == 0 or self._layers is None:
            layers = tracked_layers(pl_module)
            self._layers = {name: each for name, each in layers.items() if pl_module.get_submodule(name).training}
        if self._layers:
            self._batches.append(copy_of_batch(batch))

    def retake(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take them of the module as it is now; to be called on every process.

        Where there is no batch, or a step outside training fails, those of the module stay.
        """
        self._trainer = weakref.ref(trainer)
        if not self._layers:
            return
        processes = Processes(pl_module.device)
        found = self._moments(trainer, pl_module)
        received = {} if found is None else {processes.rank: found}
        values = pooled(received, dict.fromkeys(received, 1), processes)
        if values:
            self.keep(pl_module, under_all_names(values, self._layers))

    def alone(self, pl_module: pl.LightningModule) -> StateDict:
        """Those of any weights of the module that was trained, taken on this process alone."""
        trainer = self._trainer()
        found = None if trainer is None else self._moments(trainer, pl_module)
        return self.of(pl_module) if found is None else under_all_names(found, self._layers or {})

    def _moments(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> StateDict | None:
        if self._has_failed or not self._batches or not self._layers:
            return None
        try:
            copied = converted_copy(pl_module, self._scheme)
            return moments_on(trainer, pl_module, copied, list(self._layers), self._batches, is_converted=True)
        except Exception as error:  # the user's own step, which knows of training only
            self._has_failed = True
            rank_zero_warn(
                "BatchNorm statistics of the quantized model are those of the float32 one, since training_step did not "
                f"run on a copy of the module ({type(error).__name__}: {first_line(error)})"
            )
            return None


def moments_on(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    copied: pl.LightningModule,
    layers: Sequence[str],
    batches: Sequence[Any],
    is_converted: bool,
) -> StateDict | None:
    """Batch moments of a copy over training steps on some batches, see `batch_moments`; None where they tell nothing.

    Args:
        trainer: Whose module it is.
        pl_module: It.
        copied: Its copy, converted or not.
        layers: Names of BatchNorm layers.
        batches: On the copy's device.
        is_converted: Whether it is the deployed model.
    """

    def steps() -> None:
        for batch in batches:
            training_step(trainer, copied, batch, is_converted)

    try:
        with in_training(trainer, pl_module, copied):
            moments = batch_moments(copied, layers, steps)
    except TooFewValuesError:
        return None
    return moments if are_usable(moments, len(layers)) else None


def moments_of_views(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    scheme: QuantScheme | None,
    layers: Sequence[str],
    batches: Sequence[Any],
) -> StateDict | None:
    """Those of both views of a module, see `support.views`; without a scheme there is one.

    Args:
        trainer: Whose module it is.
        pl_module: It, plain.
        scheme: The deployment grid.
        layers: Names of BatchNorm layers.
        batches: On the module's device.
    """
    found = moments_on(trainer, pl_module, plain_copy(pl_module), layers, batches, is_converted=False)
    if found is None or scheme is None:
        return found
    deployed = moments_on(trainer, pl_module, converted_copy(pl_module, scheme), layers, batches, is_converted=True)
    return None if deployed is None else found | as_deployed(deployed)
