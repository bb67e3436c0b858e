"""Quantized training as a precision plugin, for `lightning.Trainer` and for Fabric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import lightning.pytorch as pl
from lightning.fabric.plugins import Precision as FabricPrecision
from lightning.pytorch.plugins import Precision
from torch import Tensor, nn
from typing_extensions import override

from fedhq_lightning.drop_in.lane_swap import Lane, has_lazy_layers, refuse_unsupported
from fedhq_lightning.drop_in.quantized_callback import QuantizedCallback, refuse_static_ranges
from fedhq_lightning.drop_in.trainer_parts import callbacks_of
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.support.memory import keep_freed_memory
from fedhq_lightning.types import MODES, Mode


class QuantizedPrecision(Precision):
    """Trains modules in the lane of one mode; Lightning's precision plugin, for a Trainer or for Fabric.

    Training steps have the bits of the callback `QuantizedTraining`. Evaluation is of the fp model, and that is all: to
    evaluate the deployed model beside it, and to write it, is the callback's.

    In a Trainer, layers are in the lane in training steps, plain in all others and when `fit` has ended. In Fabric, a
    module that was set up is in the lane in a forward after `train()`, and plain in one after `eval()` and after
    `teardown()` of this plugin.

    Args:
        mode: `qat` trains with the scheme's grid in the forward pass; `ptq` in int8 arithmetic, blind to the grid;
            `fp` as without this plugin.
        scheme: The grid that the model will be deployed on, as for `QuantizedTraining`.
        lanes: How the lanes compute; None is `LaneOptions()`.

    Raises:
        ConfigurationError: An unknown mode, a scheme that cannot be read or has static ranges. When a module is set up:
            what `QuantizedTraining` refuses, and that callback beside this plugin.

    Example::

        trainer = L.Trainer(max_epochs=10, plugins=QuantizedPrecision("ptq", "w4a8"))
        fabric = L.Fabric(plugins=QuantizedPrecision("ptq", "w4a8"))
    """

    precision = "32-true"

    def __init__(
        self, mode: Mode = "qat", scheme: str | QuantScheme = "w4a8", lanes: LaneOptions | None = None
    ) -> None:
        if mode not in MODES:
            raise ConfigurationError(f"mode {mode!r}: allowed are {', '.join(MODES)}{nearest(str(mode), MODES)}")
        self.mode = mode
        self.scheme = QuantScheme.parse(scheme)
        self.lanes = lanes
        refuse_static_ranges(type(self).__name__, self.scheme)
        self._lanes: dict[nn.Module, Lane] = {}

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        """Take note of a module that is set up, and refuse what cannot train in the lane."""
        if _is_of_a_trainer(module):
            self._refuse_companions(module.trainer)
            refuse_unsupported(module.trainer, module, self.scheme)
        elif not has_lazy_layers(module):
            self.scheme.for_layers(module)
        lane = Lane(self.mode, self.scheme, self.lanes)
        lane.check(module)
        self._lanes[module] = lane
        keep_freed_memory()
        return module

    @override
    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Each module that was set up in the lane, or plain, as its `train()` and `eval()` say; this is Fabric's."""
        for module in self._lanes:
            self._put(module, is_training=module.training)
        yield

    @override
    @contextmanager
    def train_step_context(self) -> Iterator[None]:
        """In the lane."""
        for module in self._lanes:
            self._put(module, is_training=True)
        yield

    @contextmanager
    def _plain(self) -> Iterator[None]:
        for module in self._lanes:
            self._put(module, is_training=False)
        yield

    val_step_context = test_step_context = predict_step_context = _plain

    @override
    def pre_backward(self, tensor: Tensor, module: nn.Module | None) -> Any:
        """Call the Trainer's hooks, where there is a Trainer."""
        return super().pre_backward(tensor, module) if _is_of_a_trainer(module) else tensor

    @override
    def backward(self, tensor: Tensor, model: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        """Compute gradients, as the package does that the model is used with."""
        if _is_of_a_trainer(model):
            super().backward(tensor, model, *args, **kwargs)
        else:
            FabricPrecision.backward(self, tensor, model, *args, **kwargs)

    @override
    def post_backward(self, tensor: Tensor, module: nn.Module | None) -> Any:
        """Call the Trainer's hooks, where there is a Trainer."""
        return super().post_backward(tensor, module) if _is_of_a_trainer(module) else tensor

    @override
    def optimizer_step(
        self, optimizer: Any, model: nn.Module | None = None, closure: Callable[[], Any] | None = None, **kwargs: Any
    ) -> Any:
        """Step, as the package does that the model is used with."""
        if model is not None and closure is not None:
            return super().optimizer_step(optimizer, model, closure, **kwargs)  # type: ignore[arg-type]  # Lightning's
        return FabricPrecision.optimizer_step(self, optimizer, **({"closure": closure} if closure else {}), **kwargs)

    @override
    def teardown(self) -> None:
        """Make the layers plain again, and forget the modules."""
        for module in self._lanes:
            self._put(module, is_training=False)
        self._lanes.clear()

    def _put(self, module: nn.Module, is_training: bool) -> None:
        lane = self._lanes[module]
        if not is_training:
            lane.leave(module)
        elif not lane.is_entered and not has_lazy_layers(module):
            lane.enter(module)

    def _refuse_companions(self, trainer: pl.Trainer) -> None:
        for callback in callbacks_of(trainer):
            if isinstance(callback, QuantizedCallback):
                raise ConfigurationError(
                    f"QuantizedPrecision together with {type(callback).__name__}: both put the module into a lane; "
                    "leave the plugin out, the callback trains alike"
                )


def _is_of_a_trainer(module: nn.Module | None) -> TypeGuard[pl.LightningModule]:
    """Whether a Trainer trains it; Fabric has LightningModules too."""
    return isinstance(module, pl.LightningModule) and module._trainer is not None
