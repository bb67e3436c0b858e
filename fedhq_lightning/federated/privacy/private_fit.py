"""DP-SGD in a client's local fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.privacy.example_gradients import (
    ByOpacus,
    ExampleGradients,
    OneAtATime,
    num_rows,
    opacus_hooks,
    opacus_knows,
)
from fedhq_lightning.federated.privacy.mechanisms import LocalPrivacy
from fedhq_lightning.federated.privacy.poisson_batches import PoissonBatches
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.support.seeds import derive_seed
from fedhq_lightning.support.tensors import same_values
from fedhq_lightning.types import FitOptions


class PrivateClientTrainer(ClientTrainer):
    """Trains with the noisy sum of clipped gradients of single examples in the place of the batch's gradient.

    An optimizer, a learning rate and a client-side term see nothing but the noisy gradient, and what does not depend on
    the client's data. What the module logs is not noised, and is not told.

    Args:
        privacy: Clipping norm and noise.
        module: As for `ClientTrainer`.
        options: Likewise.
        device: Likewise.
        autocast: Likewise.
        datamodule: Likewise.
        one_at_a_time: Whether examples of a batch change each other's gradients in this module, as in the lanes.
    """

    def __init__(
        self,
        privacy: LocalPrivacy,
        module: L.LightningModule,
        options: FitOptions,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        datamodule: L.LightningDataModule | None = None,
        one_at_a_time: bool = True,
    ) -> None:
        super().__init__(module, options, device, autocast, datamodule)
        self._privacy = privacy
        self._one_at_a_time = one_at_a_time
        self._noise = torch.Generator()
        self._expected = 1.0
        self._examples: ExampleGradients | None = None
        self._stepped_at = -1

    def seed_noise(self, seed: int, round_number: int, client_id: int | str) -> None:
        """Before each fit: where its noise comes from."""
        self._noise.manual_seed(derive_seed(seed, "noise on gradients", round_number, client_id))

    @override
    def fit(
        self,
        loader: Sequence[Any] | Any,
        learning_rate_scale: float = 1.0,
        before_step: Callable[..., None] | None = None,
        work: float = 1.0,
        after_step: Callable[[], None] | None = None,
    ) -> tuple[int, dict[str, float]]:
        """As `ClientTrainer.fit`, on Poisson batches of the loader's examples; nothing that was logged is given.

        Raises:
            ConfigurationError: See `PoissonBatches` and `num_rows`; an optimizer that asks for gradients twice a step,
                a scheduler that looks at what was logged, or a buffer that training changed and clients send.
        """
        if not len(loader):
            return 0, {}
        batches = PoissonBatches(loader)
        self._expected, self._stepped_at = batches.expected, -1
        parameters = [each for each in self.lightning_module.parameters() if each.requires_grad]
        with ExitStack() as until_the_end:
            if self._one_at_a_time or not opacus_knows(self.lightning_module):
                self._examples = OneAtATime(parameters, self._privacy.max_grad_norm)
            else:
                until_the_end.enter_context(opacus_hooks(self.lightning_module))
                self._examples = ByOpacus(parameters, self._privacy.max_grad_norm)
            buffers = _float_buffers(self.lightning_module)
            num_steps, _ = super().fit(cast(Sequence[Any], batches), learning_rate_scale, before_step, work, after_step)
            _check_unchanged(buffers, self.lightning_module)
        return num_steps, {}

    @override
    def _closure(
        self,
        batch: Any,
        batch_idx: int,
        optimizer: Optimizer,
        first: bool,
        before_step: Callable[..., None] | None,
        last: bool,
    ) -> Tensor | None:
        """Noisy gradients of one batch, in the order of Lightning's closure."""
        if self._stepped_at == self.global_step:
            raise ConfigurationError(
                f"{type(optimizer).__name__} asks for gradients more than once a step, each of which would have to be "
                "accounted; LocalPrivacy takes optimizers that ask once, such as SGD or Adam"
            )
        if any(config.reduce_on_plateau for config in self.lr_scheduler_configs):
            raise ConfigurationError(
                "ReduceLROnPlateau sets the learning rate by what training logged, which has no noise; LocalPrivacy "
                "takes schedulers that count steps or epochs"
            )
        self._stepped_at, self._output = self.global_step, {}
        assert self._examples is not None
        parameters = [each for each in self.lightning_module.parameters() if each.requires_grad]
        losses: list[Tensor] = []

        def backward(part: Any) -> Tensor | None:
            self._current_batch, self._batch_size = part, None
            loss, self._output = self._training_step(part, batch_idx)
            if loss is not None:
                self._call("on_before_backward", loss)
                self._call("backward", loss)
                self._call("on_after_backward")
                losses.append(loss.detach())
            return loss

        self._call("on_before_zero_grad", optimizer)
        self._call("optimizer_zero_grad", self.current_epoch, batch_idx, optimizer)
        summed = self._examples.clipped_sum(batch, backward) if num_rows(batch) else None
        deviation = self._privacy.noise_multiplier * self._privacy.max_grad_norm
        for place, parameter in enumerate(parameters):
            noise = torch.randn(parameter.shape, generator=self._noise).to(parameter) * deviation
            parameter.grad = (noise if summed is None else noise + summed[place]) / self._expected
        self._had_loss = True  # of noise alone too a step is made
        self._current_batch, self._batch_size = batch, None
        if before_step is not None:
            before_step(optimizer)
        self._call("on_before_optimizer_step", optimizer)
        if self.gradient_clip_val or not self._is_lightnings("configure_gradient_clipping", "clip_gradients"):
            self._call("configure_gradient_clipping", optimizer, self.gradient_clip_val, None)
        return torch.stack(losses).mean() if losses else None


def _float_buffers(module: L.LightningModule) -> dict[str, Tensor]:
    """Copies of those that a client sends."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    state = module.state_dict()
    return {name: each.clone() for name, each in state.items() if name not in parameters and each.is_floating_point()}


def _check_unchanged(before: dict[str, Tensor], module: L.LightningModule) -> None:
    """Refuse what training put into a buffer without noise."""
    after = module.state_dict()
    if changed := [name for name, each in before.items() if not same_values(after[name], each)]:
        raise ConfigurationError(
            f"LocalPrivacy: training changed {', '.join(changed[:3])}, which clients send and to which no noise is "
            "added; leave it as it is while training, or register it with persistent=False"
        )
