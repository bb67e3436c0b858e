"""Static activation ranges of one client's model: calibrated on a batch of its own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import nn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.local.batch_statistics import TooFewValuesError, batch_moments
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.local.module_state import load_weights, reset_metrics, restore_buffers
from fedhq_lightning.quantize import QuantScheme, calibrate_ranges
from fedhq_lightning.quantize.activation_ranges import is_calibrated
from fedhq_lightning.support.lightnings import is_overridden
from fedhq_lightning.support.seeds import generators_kept
from fedhq_lightning.support.views import is_range
from fedhq_lightning.types import ClientId, StateDict


class ClientRanges:
    """Calibrates the ranges of clients' models, one after another, in the QAT lane: inputs are the deployed model's.

    A client in `fp` or `ptq` does so at the end of its fit, since its training says nothing about ranges. One in `qat`
    learns them, and calibrates only what nobody has before, at the start of its first fit. Both are estimates of what
    rounds this model best, so their mean is one too.

    Args:
        scheme: With static ranges.
        lane: Gives the QAT lane.
        template: The user's module, set up, with ranges.
        datamodule: Gives each client's batch.
        device: Where the lane is.
        batch_norms: Layers whose statistics are taken anew before the model is evaluated: they normalize by the batch
            here too. The other BatchNorm layers do by their running statistics.
    """

    def __init__(
        self,
        scheme: QuantScheme,
        lane: Callable[[], ClientTrainer],
        template: L.LightningModule,
        datamodule: FederatedDataModule,
        device: torch.device,
        batch_norms: Mapping[str, Sequence[str]],
    ) -> None:
        self._scheme = scheme
        self._lane = lane
        self._template = template
        self._datamodule = datamodule
        self._device = device
        self._batch_norms = batch_norms

    def calibrated(self, state: Mapping[str, Any], client_id: ClientId) -> StateDict:
        """The ranges of a model on one batch of the client's, by their names in the state.

        No generator changes. A range that the pass tells nothing about is the state's.

        Args:
            state: The model.
            client_id: The client.
        """
        trainer = self._lane()
        module = trainer.lightning_module
        restore_buffers(module, self._template, self._device)
        reset_metrics(module)
        batch = self._datamodule.calibration_batch(client_id)
        with generators_kept():
            if is_overridden("on_fit_start", module):
                module.on_fit_start()  # what the step needs may be made there
            load_weights(module, dict(state))
            calibrate_ranges(module, self._scheme, partial(self._run, step=partial(trainer.run_step, batch)))
        return {name: value.detach() for name, value in module.state_dict().items() if is_range(name)}

    def completed(self, received: StateDict, client_id: ClientId) -> StateDict:
        """A model that a client received, with ranges where nobody has calibrated them before.

        Args:
            received: The model.
            client_id: The client; without a batch the model stays as it is.
        """
        missing = [name for name, value in received.items() if is_range(name) and not is_calibrated(value)]
        if not missing:
            return received
        try:
            found = self.calibrated(received, client_id)
        except StopIteration:
            return received
        return received | {name: found[name].cpu() for name in missing}

    def _run(self, module: nn.Module, step: Callable[[], object]) -> None:
        try:
            batch_moments(module, self._batch_norms, step)
        except TooFewValuesError:
            batch_moments(module, (), step)
