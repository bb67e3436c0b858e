"""Metrics of the global model, as it is and as it will be deployed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.local.memory_of_evaluation import changed, plain_attributes, recall, take_weights
from fedhq_lightning.local.module_state import load_weights
from fedhq_lightning.quantize import QuantScheme, attach_ranges, convert, prepare
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.lightnings import is_overridden
from fedhq_lightning.support.seeds import derive_seed, seed_generators
from fedhq_lightning.support.views import deployed_view, is_range, users_view
from fedhq_lightning.types import FitOptions, StateDict


class Evaluator:
    """Evaluates states on the server's held-out batches.

    The fp and the quantized model are two jobs, dealt over the processes; each job runs whole on one process, so its
    bits do not depend on their number.

    Args:
        template: The user's module, set up; copied, never changed.
        scheme: Deployment grid, or None: then there is no quantized model.
        options: Only to build a `ClientTrainer`.
        processes: For dealing the jobs and sharing their results.
        device: Where the fp model runs; the deployed model runs there too.
        autocast: Context of the fp model's steps.
        seed: The run's seed; evaluation that draws random numbers draws the same at every call.
        datamodule: Where batches come from, for its hooks; None for loaders alone.
    """

    def __init__(
        self,
        template: L.LightningModule,
        scheme: QuantScheme | None,
        options: FitOptions,
        processes: Processes,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        seed: int,
        datamodule: L.LightningDataModule | None = None,
    ) -> None:
        self._template = template
        self.scheme = scheme
        self._options = options
        self._processes = processes
        self.device = device
        self.autocast = autocast
        self._seed = seed
        self._datamodule = datamodule
        self._residents: dict[str, L.LightningModule] = {}
        self._memory: dict[str, Any] = {}

    def evaluate(self, state: StateDict, loaders: Sequence[Any], stage: str = "validation") -> dict[str, float]:
        """`fp/NAME` and `quantized/NAME` for every name that the module logs; the same on every process.

        The modules stay from one call to the next, and with them what they keep beside their weights.
        """
        kinds = ["fp"] if self.scheme is None else ["fp", "quantized"]
        mine: dict[str, Any] = {}
        for index, kind in enumerate(kinds):
            if index % self._processes.count == self._processes.rank:
                fresh = self.model(state) if kind == "fp" else self.deployed(state)
                module = self._resident(kind, fresh)
                metrics = self.metrics_of(module, loaders, stage, self.autocast if kind == "fp" else nullcontext)
                mine[kind] = metrics, changed(plain_attributes(module), plain_attributes(fresh))
        shared: dict[str, Any] = {}
        for part in self._processes.gather(mine):
            shared |= part
        self._memory = {kind: memory for kind, (_, memory) in shared.items() if memory}
        return {f"{kind}/{name}": value for kind in kinds for name, value in shared[kind][0].items()}

    def state_dict(self) -> dict[str, Any]:
        """What the modules keep beside their weights, as plain values."""
        return self._memory

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what `state_dict` gave."""
        self._memory, self._residents = state, {}

    def _resident(self, kind: str, fresh: L.LightningModule) -> L.LightningModule:
        if kind in self._residents:
            take_weights(self._residents[kind], fresh)
        else:
            self._residents[kind] = copy.deepcopy(fresh)
            recall(self._residents[kind], self._memory.get(kind, {}))
        return self._residents[kind]

    def metrics_of(
        self,
        module: L.LightningModule,
        loaders: Sequence[Any],
        stage: str = "validation",
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, float]:
        """What one module logs on `loaders`, on this process and on the device where the module is."""
        seed_generators(derive_seed(self._seed, "evaluate"))
        return ClientTrainer(module, self._options, module.device, autocast, self._datamodule).evaluate(loaders, stage)

    def model(self, state: StateDict) -> L.LightningModule:
        """The module with the float32 view of `state`, and with what its `on_fit_start` makes, as in every fit.

        It holds static activation ranges where the scheme has any, not calibrated where the state has none.
        """
        module = copy.deepcopy(self._template)
        if self.scheme is not None:
            attach_ranges(module, self.scheme)
        if is_overridden("on_fit_start", module):
            trainer = ClientTrainer(module, self._options, module.device, self.autocast, self._datamodule)
            module.on_fit_start()
            trainer.detach()
        ranges = {name: state.get(name, value) for name, value in module.state_dict().items() if is_range(name)}
        load_weights(module, users_view(state) | ranges)
        return module.to(self.device)

    def deployed(self, state: StateDict) -> L.LightningModule:
        """The module with the deployed view of `state` as its weights, converted to the scheme's grid.

        Layers whose static activation range nobody has calibrated yet, as before the first round, get dynamic ones.

        Raises:
            ConfigurationError: The scheme has static activation ranges, and the state knows of none.
        """
        return convert(self._deployed_view(state), self._grid(), allow_uncalibrated=True)

    def on_grid(self, state: StateDict) -> L.LightningModule:
        """The deployed view of `state` in the QAT lane: `deployed` but for float rounding, in less time."""
        return prepare(self._deployed_view(state), "qat", self._grid())

    def _grid(self) -> QuantScheme:
        if self.scheme is None:
            raise ValueError("no scheme: there is no deployed model")
        return self.scheme

    def _deployed_view(self, state: StateDict) -> L.LightningModule:
        module = self.model(deployed_view(state))
        lost = [name for name in module.state_dict() if is_range(name) and name not in state]
        if lost:
            raise ConfigurationError(
                f"scheme '{self.scheme}' has static activation ranges, and these weights of "
                f"{type(module).__name__} have none ({', '.join(lost[:3])}): they are found in training and lie beside "
                "the module's own weights; give a checkpoint or a run directory (ckpt_path), or call fit before"
            )
        return module


def as_loaders(loaders: Any) -> list[Any]:
    """One loader or several, as a list."""
    if loaders is None:
        return []
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]
