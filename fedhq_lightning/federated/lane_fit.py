"""One local fit in a lane: from the model that a client begins with to the one that it has then."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.aggregator import ClientEnd, ClientTerm
from fedhq_lightning.federated.client_ranges import ClientRanges
from fedhq_lightning.federated.personal.personal_layers import OwnLayers
from fedhq_lightning.federated.privacy.mechanisms import LocalPrivacy
from fedhq_lightning.federated.privacy.private_fit import PrivateClientTrainer
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.local.module_state import load_weights, reset_metrics, restore_buffers, restore_requires_grad
from fedhq_lightning.local.pristine import Pristine
from fedhq_lightning.quantize import LaneOptions, QuantScheme, RangeLearner, correct_bias, prepare
from fedhq_lightning.support.seeds import derive_seed, seed_generators
from fedhq_lightning.types import ClientId, FitOptions, Mode, StateDict

_NO_BATCH = "its training loader gives no batch, as with drop_last and fewer examples than batch_size"
_SKIPPED = "no batch was trained on, as when on_train_batch_start returns -1 or training_step None"


@dataclass(frozen=True)
class LaneFit:
    """What a fit came to.

    Attributes:
        num_steps: Optimizer steps taken.
        metrics: What the module logged.
        reason: Why it took none.
        state: The local model, in the module's own tensors until its next fit.
        end: What the algorithm's term left.
    """

    num_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    state: StateDict = field(default_factory=dict)
    end: ClientEnd = field(default_factory=ClientEnd)


class LaneFitter:
    """Fits one model after another, in one resident module per mode.

    Args:
        template: The user's module, set up; copied once per mode, never trained.
        scheme: Deployment grid, or None where every client trains in fp.
        lanes: How PTQ and QAT compute.
        options: Length of a local fit.
        datamodule: Gives each client's loader.
        seed: The run's seed.
        device: Where modules train.
        autocast: Context of the training steps.
        batch_norms: Layers whose statistics are taken anew, for the calibration of static activation ranges.
        fixed_names: What no fit may train.
        own_layers: What of the model is each client's own, and may train in turn with the rest.
        privacy: Noise on the gradients, or None.
    """

    def __init__(
        self,
        template: L.LightningModule,
        scheme: QuantScheme | None,
        lanes: LaneOptions,
        options: FitOptions,
        datamodule: FederatedDataModule,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        batch_norms: Mapping[str, Sequence[str]],
        fixed_names: Set[str],
        own_layers: OwnLayers,
        privacy: LocalPrivacy | None,
    ) -> None:
        self._template = template
        self._scheme = scheme
        self._options = lanes
        self._fit_options = options
        self._datamodule = datamodule
        self._seed = seed
        self._device = device
        self._autocast = autocast
        self._fixed_names = fixed_names
        self._own_layers = own_layers
        self._privacy = privacy
        self._lanes: dict[Mode, tuple[ClientTrainer, Pristine]] = {}
        self._ranges: ClientRanges | None = None
        if scheme is not None and scheme.has_static_ranges:
            self._ranges = ClientRanges(scheme, lambda: self.lane("qat"), template, datamodule, device, batch_norms)

    def fit(
        self,
        mode: Mode,
        client_id: ClientId,
        round_number: int,
        start: StateDict,
        term_of: Callable[[L.LightningModule], ClientTerm | None],
        scale: float = 1.0,
        work: float = 1.0,
        purpose: str = "fit",
    ) -> LaneFit:
        """Train on one client's examples.

        Args:
            mode: The lane.
            client_id: Whose.
            round_number: From 1.
            start: The model to begin with.
            term_of: Makes what an algorithm adds, of the module at these weights.
            scale: Factor on every learning rate.
            work: Share of the local steps that is taken.
            purpose: By which random numbers are drawn, with client and round.

        Raises:
            ConfigurationError: The fit trained what no fit may.
        """
        ranges = self._ranges
        if ranges is not None and mode == "qat":
            start = ranges.completed(start, client_id)
        trainer = self.lane(mode)
        module = trainer.lightning_module
        restore_requires_grad(module, self._template)
        self.load(module, start)
        reset_metrics(module)
        seed_generators(derive_seed(self._seed, purpose, round_number, client_id))
        loader = self._datamodule.train_dataloader(client_id)
        if isinstance(trainer, PrivateClientTrainer):
            trainer.seed_noise(self._seed, round_number, client_id)
        term, learner, after_step = term_of(module), None, None
        if ranges is not None and mode == "qat":
            learner = RangeLearner(module, self._options.range_lr * scale)
            after_step = learner.step
        turns = self._own_layers.turns(module, self._fit_options.num_steps(len(loader), work))
        before_step = _in_order([each.before_step for each in (turns, term) if each is not None])
        num_steps, metrics = trainer.fit(loader, scale, before_step, work, after_step)
        if learner is not None:
            learner.finish()
        self._check_frozen(module)
        if not num_steps:
            return LaneFit(reason=_SKIPPED if len(loader) else _NO_BATCH)
        end = ClientEnd() if term is None else term.finish(num_steps)
        state = module.state_dict()
        if ranges is not None and mode != "qat":
            state = state | ranges.calibrated(state, client_id)
        if mode == "ptq" and self._options.bias_correction:
            state = self._corrected(state, client_id)
        return LaneFit(num_steps, metrics, state=state, end=end)

    def lane(self, mode: Mode) -> ClientTrainer:
        """The resident module of a mode, as no client has touched it but for weights and buffers."""
        if mode not in self._lanes:
            module = copy.deepcopy(self._template)
            if mode != "fp" and self._scheme is not None:
                module = prepare(module, mode, self._scheme, self._options)
            module.to(self._device)
            given = module, self._fit_options, self._device, self._autocast, self._datamodule
            if self._privacy is None:
                trainer = ClientTrainer(*given)
            else:
                trainer = PrivateClientTrainer(self._privacy, *given, one_at_a_time=mode != "fp")
            self._lanes[mode] = trainer, Pristine(module)
        trainer, pristine = self._lanes[mode]
        pristine.restore()
        return trainer

    def load(self, module: L.LightningModule, state: StateDict) -> None:
        """Give a resident module a model, and the template's buffers beside it."""
        restore_buffers(module, self._template, self._device)
        load_weights(module, state)

    def let_go(self, mode: Mode) -> None:
        """Free the memory of a lane."""
        self._lanes.pop(mode, None)

    def _check_frozen(self, module: L.LightningModule) -> None:
        """Refuse a fit that trained what no client sends."""
        if not self._fixed_names:
            return
        thawed = [name for name, each in module.named_parameters() if each.requires_grad]
        if lost := [name for name in thawed if name in self._fixed_names]:
            raise ConfigurationError(
                f"{', '.join(lost[:3])}: frozen when a local fit began and trained in the end, but what is frozen then "
                "is taken to be so in every fit, and no client sends it; thaw it before training, in __init__ or "
                "on_fit_start, or leave it frozen"
            )

    def _corrected(self, state: StateDict, client_id: ClientId) -> StateDict:
        """A local model with biases that make up for rounding it, found on one batch of the client's data."""
        assert self._scheme is not None
        plain, batch = self.lane("fp"), self._datamodule.calibration_batch(client_id)
        self.load(plain.lightning_module, state)
        correct_bias(plain.lightning_module, self._scheme, lambda module: plain.run_step(batch))
        return plain.lightning_module.state_dict()


def _in_order(hooks: Sequence[Callable[[Optimizer], None]]) -> Callable[[Optimizer], None] | None:
    def call(optimizer: Optimizer) -> None:
        for hook in hooks:
            hook(optimizer)

    return call if hooks else None
