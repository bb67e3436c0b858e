"""What a client measures for the allocator: how much the scheme hurts a model on its own data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.local.batch_statistics import are_as_made
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.local.module_state import load_weights, reset_metrics, restore_buffers
from fedhq_lightning.local.pristine import Pristine
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.risk.sensitivity import SensitivityMeasure, quantization_sensitivity
from fedhq_lightning.support.seeds import generators_kept
from fedhq_lightning.types import ClientId, FitOptions, StateDict


class ClientAnalyst:
    """Measures clients one after another on this process, in a module of its own, so that no lane notices.

    Args:
        template: The user's module, set up; copied at the first measurement, never changed.
        scheme: Deployment grid.
        lanes: How QAT computes.
        options: Only to build a `ClientTrainer`.
        datamodule: Gives each client's calibration batch.
        device: Where the module runs.
        autocast: Context of the steps.
    """

    def __init__(
        self,
        template: L.LightningModule,
        scheme: QuantScheme,
        lanes: LaneOptions,
        options: FitOptions,
        datamodule: FederatedDataModule,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._template = template
        self._scheme = scheme
        self._lane_options = lanes
        self._options = options
        self._datamodule = datamodule
        self._device = device
        self._autocast = autocast
        self._resident: tuple[ClientTrainer, Pristine] | None = None

    def sensitivity(
        self, client_id: ClientId, measure: SensitivityMeasure, state: StateDict | None = None
    ) -> float | None:
        """How much the scheme hurts a model on the client's calibration batch, see `quantization_sensitivity`.

        Nothing outside changes: no generator, no lane, no weight of the template.

        Args:
            client_id: The client.
            measure: `sqnr` or `loss`.
            state: The model that the client received; None for the initial one.

        Returns:
            The sensitivity, >= 0; None where it is no finite number, the client has no batch, or of an initial model
            whose BatchNorm layers have no statistics yet: its output is theirs more than the weights'.

        Raises:
            ConfigurationError: Unknown measure.
        """
        if state is None and are_as_made(self._template):
            return None
        with generators_kept():
            try:
                batch = self._datamodule.calibration_batch(client_id)
            except StopIteration:
                return None
            trainer = self._loaded(self._template.state_dict() if state is None else state)
            return quantization_sensitivity(
                trainer.lightning_module, self._scheme, lambda: trainer.run_step(batch), measure, self._lane_options
            )

    def _loaded(self, state: StateDict) -> ClientTrainer:
        if self._resident is None:
            module = copy.deepcopy(self._template).to(self._device)
            trainer = ClientTrainer(module, self._options, self._device, self._autocast, self._datamodule)
            self._resident = trainer, Pristine(module)
        trainer, pristine = self._resident
        pristine.restore()
        module = trainer.lightning_module
        restore_buffers(module, self._template, self._device)
        load_weights(module, state)
        reset_metrics(module)
        return trainer
