"""Lanes on a module that `lightning.pytorch.Trainer` trains, and what it cannot train in them."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import (
    BitsandbytesPrecision,
    DeepSpeedPrecision,
    FSDPPrecision,
    TransformerEnginePrecision,
    XLAPrecision,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parameter import is_lazy

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import LaneOptions, QuantScheme, prepare, restore
from fedhq_lightning.support.lightnings import both
from fedhq_lightning.types import Mode

_SHARDING = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
_XLA = (XLAStrategy, SingleDeviceXLAStrategy)
_OTHER_LAYERS = (
    BitsandbytesPrecision,
    DeepSpeedPrecision,
    FSDPPrecision,
    TransformerEnginePrecision,
    XLAPrecision,
)


class Lane:
    """Switches one module into a mode and back, any number of times.

    Args:
        mode: How it trains.
        scheme: Deployment grid.
        options: How the lanes compute; None is `LaneOptions()`.

    Attributes:
        is_entered: Whether the last call was `enter`.
    """

    def __init__(self, mode: Mode, scheme: QuantScheme, options: LaneOptions | None = None) -> None:
        self.mode = mode
        self.scheme = scheme
        self.options = options
        self.is_entered = False
        self._fast_paths: dict[nn.TransformerEncoderLayer, int] = {}

    def check(self, module: nn.Module) -> None:
        """See whether `enter` would succeed, without touching the module; lazy layers cannot be judged yet.

        Raises:
            ConfigurationError: See `fedhq_lightning.quantize.prepare`.
        """
        if self.mode != "fp" and self.options is not None and not has_lazy_layers(module):
            self.options.kernels_of(self.mode, list(self.scheme.for_layers(module)))

    def enter(self, module: nn.Module) -> None:
        """Prepare the module, in place; Parameters, names and hooks stay.

        Raises:
            ConfigurationError: See `fedhq_lightning.quantize.prepare`.
        """
        self._fast_paths |= {
            layer: layer.activation_relu_or_gelu
            for layer in module.modules()
            if isinstance(layer, nn.TransformerEncoderLayer) and layer not in self._fast_paths
        }
        prepare(module, self.mode, self.scheme, self.options)
        self.is_entered = True

    def leave(self, module: nn.Module) -> None:
        """Make the module's layers plain again; does nothing where they are."""
        restore(module)
        self.is_entered = False
        for layer, value in self._fast_paths.items():
            layer.activation_relu_or_gelu = value
        self._fast_paths.clear()


def has_lazy_layers(module: nn.Module) -> bool:
    """Whether a Parameter has no shape yet, as before the first forward of `nn.LazyLinear`."""
    return any(is_lazy(parameter) for parameter in module.parameters())


def refuse_unsupported(trainer: pl.Trainer, pl_module: pl.LightningModule, scheme: QuantScheme | None = None) -> None:
    """Refuse by name what no lane can train in.

    Args:
        trainer: The Trainer of the running fit or evaluation.
        pl_module: Its module.
        scheme: Deployment grid, from the moment when the module has all its layers; None leaves the layers unchecked.

    Raises:
        ConfigurationError: A strategy that takes layers apart or runs them elsewhere (FSDP, DeepSpeed, model-parallel,
            XLA), a precision plugin that brings layers of its own, a layer wrapped by `torch.compile`, or a scheme that
            does not fit the module.
    """
    strategy, precision = trainer.strategy, trainer.precision_plugin
    if isinstance(strategy, both(*_SHARDING)):
        raise ConfigurationError(
            f"strategy {type(strategy).__name__} splits the weights of a layer over devices, and quantization needs "
            "whole layers; use Trainer(strategy='ddp') or one device"
        )
    if isinstance(strategy, both(*_XLA)):
        raise ConfigurationError(
            f"strategy {type(strategy).__name__} runs on XLA devices, for which there are no quantized kernels; use "
            "Trainer(accelerator='cpu') or 'gpu'"
        )
    if isinstance(precision, both(*_OTHER_LAYERS)):
        raise ConfigurationError(
            f"precision plugin {type(precision).__name__} computes layers in its own way, which quantization would "
            "replace; use Trainer(precision='32-true') or 'bf16-mixed'"
        )
    for name, layer in pl_module.named_modules():
        if isinstance(layer, OptimizedModule):
            raise ConfigurationError(
                f"{type(pl_module).__name__}.{name} is the result of torch.compile, which hides the layer's class and "
                f"changes its names; call self.{name}.compile() instead of torch.compile(self.{name}), or compile the "
                "whole LightningModule"
            )
    if scheme is not None and not has_lazy_layers(pl_module):
        scheme.for_layers(pl_module)
