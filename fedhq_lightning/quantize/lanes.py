"""Lanes: a module prepared for one mode of local training."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.quantize.fake_layers import (
    FakeQuantizedConv1d,
    FakeQuantizedConv2d,
    QatLinear,
    attach_fake_quantizers,
    detach_fake_quantizers,
)
from fedhq_lightning.quantize.int8_convolution import PtqConv1d, PtqConv2d
from fedhq_lightning.quantize.int8_training import PtqLinear
from fedhq_lightning.quantize.scheme import QUANTIZABLE_TYPES, LayerScheme, QuantScheme, plain_type
from fedhq_lightning.quantize.torchao_quietly import AOBaseConfig, quantize_, register_quantize_module_handler
from fedhq_lightning.types import MODES, Mode

_PTQ_TYPES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PtqLinear,
    nn.Conv1d: PtqConv1d,
    nn.Conv2d: PtqConv2d,
}
_QAT_TYPES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QatLinear,
    nn.Conv1d: FakeQuantizedConv1d,
    nn.Conv2d: FakeQuantizedConv2d,
}


@dataclass
class PtqTrainingConfig(AOBaseConfig):  # type: ignore[misc]  # torchao ships no types
    """torchao config: train layers in int8 arithmetic, blind to the deployment grid.

    For `nn.Linear`, `nn.Conv1d` and `nn.Conv2d`; grouped convolutions stay in floating point.
    """


@dataclass
class QatTrainingConfig(AOBaseConfig):  # type: ignore[misc]  # torchao ships no types
    """torchao config: train layers with the deployment grid in the forward pass, straight-through gradients.

    Args:
        scheme: The grid. A group size must divide the layer's flattened input.
    """

    scheme: LayerScheme


@register_quantize_module_handler(PtqTrainingConfig)  # type: ignore[untyped-decorator]  # torchao ships no types
def _to_ptq(layer: nn.Module, config: PtqTrainingConfig) -> nn.Module:
    if getattr(layer, "groups", 1) == 1:
        # Another class for the same object keeps its Parameters, hooks, ties and every reference to it.
        layer.__class__ = _PTQ_TYPES[type(layer)]
    return layer


@register_quantize_module_handler(QatTrainingConfig)  # type: ignore[untyped-decorator]  # torchao ships no types
def _to_qat(layer: nn.Module, config: QatTrainingConfig) -> nn.Module:
    layer.__class__ = _QAT_TYPES[type(layer)]
    assert isinstance(layer, (QatLinear, FakeQuantizedConv1d, FakeQuantizedConv2d))
    attach_fake_quantizers(layer, config.scheme)
    return layer


def prepare(module: nn.Module, mode: Mode, scheme: QuantScheme) -> nn.Module:
    """Make a module train in a mode.

    Args:
        module: Changed in place: layers get another class; their Parameters, names and hooks stay. A module that a
            lane has prepared before is restored first.
        mode: `fp` leaves the module as it is. `ptq` computes in int8, every quantizable layer alike, since PTQ is
            blind to the grid. `qat` has each layer's grid in its forward pass. Layers that the scheme's overrides
            keep in `fp` stay so in both.
        scheme: The run's scheme.

    Returns:
        The module given.

    Raises:
        ConfigurationError: An unknown mode, or see `QuantScheme.for_layers`.
    """
    if mode not in MODES:
        raise ConfigurationError(f"mode {mode!r}: allowed are {', '.join(MODES)}{nearest(str(mode), MODES)}")
    restore(module)
    if mode == "fp":
        return module
    grids = scheme.for_layers(module)
    turn_off_fast_paths(module)
    if mode == "ptq":
        quantize_(module, PtqTrainingConfig(), filter_fn=named(grids))
    else:
        for grid in dict.fromkeys(grids.values()):
            same = {name: other for name, other in grids.items() if other == grid}
            quantize_(module, QatTrainingConfig(grid), filter_fn=named(same))
    return module


def restore(module: nn.Module) -> nn.Module:
    """Undo `prepare`, in place; a module that no lane prepared stays as it is."""
    for layer in list(module.modules()):
        kind = plain_type(layer)
        if kind is not type(layer):
            if isinstance(layer, (QatLinear, FakeQuantizedConv1d, FakeQuantizedConv2d)):
                detach_fake_quantizers(layer)
            layer.__class__ = kind
    return module


def named(names: dict[str, LayerScheme]) -> Callable[[nn.Module, str], bool]:
    """A filter for torchao's `quantize_`: plain layers with these names."""
    return lambda layer, name: name in names and type(layer) in QUANTIZABLE_TYPES


def turn_off_fast_paths(module: nn.Module) -> None:
    """Keep torch's transformer encoder from reading its layers' weights past their forward methods.

    In evaluation `nn.TransformerEncoderLayer` calls one fused kernel on the raw weights, which would skip quantization
    without a word. It does so only where this attribute names an activation it knows.
    """
    for layer in module.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0
