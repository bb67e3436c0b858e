"""Lanes: a module prepared for one mode of local training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.quantize.activation_ranges import attach_range
from fedhq_lightning.quantize.fake_layers import (
    FakeLayer,
    FakeQuantizedConv1d,
    FakeQuantizedConv2d,
    FakeQuantizedLinear,
    attach_fake_quantizers,
    detach_fake_quantizers,
)
from fedhq_lightning.quantize.int8_convolution import PtqConv1d, PtqConv2d
from fedhq_lightning.quantize.int8_training import PtqLinear
from fedhq_lightning.quantize.lane_options import (
    DEFAULT_QAT_BACKWARD,
    LaneOptions,
    PtqKernel,
    QatBackward,
    QatKernel,
    check_backward,
    check_kernel,
)
from fedhq_lightning.quantize.layers_between import prepare_between
from fedhq_lightning.quantize.qat_layers import QatConv1d, QatConv2d, QatLayer, QatLinear
from fedhq_lightning.quantize.scheme import QUANTIZABLE_TYPES, LayerScheme, QuantScheme, plain_type
from fedhq_lightning.quantize.torchao_quietly import AOBaseConfig, quantize_, register_quantize_module_handler
from fedhq_lightning.types import MODES, AnyModule, Mode

_PTQ_TYPES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PtqLinear,
    nn.Conv1d: PtqConv1d,
    nn.Conv2d: PtqConv2d,
}
_QAT_TYPES: dict[type[nn.Module], type[QatLayer]] = {nn.Linear: QatLinear, nn.Conv1d: QatConv1d, nn.Conv2d: QatConv2d}
_FAKE_TYPES: dict[type[nn.Module], type[FakeLayer]] = {
    nn.Linear: FakeQuantizedLinear,
    nn.Conv1d: FakeQuantizedConv1d,
    nn.Conv2d: FakeQuantizedConv2d,
}


@dataclass
class PtqTrainingConfig(AOBaseConfig):  # type: ignore[misc]  # torchao ships no types
    """torchao config: train layers in int8 arithmetic, blind to the deployment grid.

    For `nn.Linear`, `nn.Conv1d` and `nn.Conv2d`; grouped convolutions stay in floating point.

    Args:
        kernel: `auto` computes a layer in int8 where its size and the device make that faster (see
            `fedhq_lightning.quantize.kernel_choice`); `int8` and `fp` decide otherwise.
        stochastic_rounding: Round gradients up or down at random, without bias, instead of to the nearest step.

    Raises:
        ConfigurationError: Another kernel.
    """

    kernel: PtqKernel = "auto"
    stochastic_rounding: bool = False

    def __post_init__(self) -> None:
        """Check the kernel."""
        check_kernel("ptq", self.kernel, "kernel")


@dataclass
class QatTrainingConfig(AOBaseConfig):  # type: ignore[misc]  # torchao ships no types
    """torchao config: train layers with the deployment grid in the forward pass, straight-through gradients.

    Args:
        scheme: The grid. A group size must divide the layer's flattened input.
        kernel: `int8` computes the forward as the deployed model does, in integers, bit for bit. `auto` does so where
            it is faster and fake-quantizes with fused kernels elsewhere, as both do where a layer's forward is not one
            int8 product (weight-only schemes, groups of weights, grouped convolutions). `fake` is torchao's
            conventional fake quantization.
        qat_backward: See `LaneOptions`.

    Raises:
        ConfigurationError: Another kernel, or another backward.
    """

    scheme: LayerScheme
    kernel: QatKernel = "auto"
    qat_backward: QatBackward = DEFAULT_QAT_BACKWARD

    def __post_init__(self) -> None:
        """Check the kernels."""
        check_kernel("qat", self.kernel, "kernel")
        check_backward(self.qat_backward)


@register_quantize_module_handler(PtqTrainingConfig)  # type: ignore[untyped-decorator]  # torchao ships no types
def _to_ptq(layer: nn.Module, config: PtqTrainingConfig) -> nn.Module:
    if getattr(layer, "groups", 1) == 1:
        # Another class for the same object keeps its Parameters, hooks, ties and every reference to it.
        layer.__class__ = _PTQ_TYPES[type(layer)]
        layer.kernel, layer.stochastic_rounding = config.kernel, config.stochastic_rounding  # type: ignore[assignment]  # torch: Tensor | Module
    return layer


@register_quantize_module_handler(QatTrainingConfig)  # type: ignore[untyped-decorator]  # torchao ships no types
def _to_qat(layer: nn.Module, config: QatTrainingConfig) -> nn.Module:
    if config.scheme.static_range:
        attach_range(layer)
    if config.kernel == "fake":
        layer.__class__ = _FAKE_TYPES[type(layer)]
        assert isinstance(layer, FakeLayer)
        attach_fake_quantizers(layer, config.scheme)
    else:
        layer.__class__ = _QAT_TYPES[type(layer)]
        layer.scheme, layer.kernel, layer.qat_backward = config.scheme, config.kernel, config.qat_backward  # type: ignore[assignment]  # as above
    return layer


def prepare(module: AnyModule, mode: Mode, scheme: QuantScheme, options: LaneOptions | None = None) -> AnyModule:
    """Make a module train in a mode.

    Args:
        module: Changed in place: layers get another class; their Parameters, names and hooks stay. A module that a
            lane has prepared before is restored first.
        mode: `fp` leaves the module as it is. `ptq` computes in int8, every quantizable layer alike, since PTQ is
            blind to the grid. `qat` has each layer's grid in its forward pass; static activation ranges are attached
            where the module has none, and dynamic until `calibrate_ranges`. Layers that the scheme's overrides keep in
            `fp` stay so in both.
        scheme: The run's scheme.
        options: How the lanes compute; None is `LaneOptions()`.

    Returns:
        The module given.

    Raises:
        ConfigurationError: An unknown mode, a pattern in `options` that matches no layer, or see
            `QuantScheme.for_layers`.
    """
    if mode not in MODES:
        raise ConfigurationError(f"mode {mode!r}: allowed are {', '.join(MODES)}{nearest(str(mode), MODES)}")
    restore(module)
    if mode == "fp":
        return module
    options = LaneOptions() if options is None else options
    grids = scheme.for_layers(module)
    turn_off_fast_paths(module)
    for name, kernel in options.kernels_of(mode, list(grids)).items():
        config: AOBaseConfig
        if mode == "ptq":
            config = PtqTrainingConfig(kernel, options.stochastic_rounding)
        else:
            config = QatTrainingConfig(grids[name], kernel, options.qat_backward)
        quantize_(module, config, filter_fn=named({name: grids[name]}))
    prepare_between(module)
    return module


def restore(module: AnyModule) -> AnyModule:
    """Undo `prepare`, in place; a module that no lane prepared stays as it is.

    Static activation ranges stay: they belong to the model, as its weights do.
    """
    for layer in list(module.modules()):
        kind = plain_type(layer)
        if kind is not type(layer):
            if isinstance(layer, FakeLayer):
                detach_fake_quantizers(layer)
            for name in ("kernel", "stochastic_rounding", "scheme", "qat_backward"):
                vars(layer).pop(name, None)
            layer.__class__ = kind
    return module


def named(names: dict[str, LayerScheme]) -> Callable[[nn.Module, str], bool]:
    """A filter for torchao's `quantize_`: plain layers with these names."""
    return lambda layer, name: name in names and type(layer) in QUANTIZABLE_TYPES


def turn_off_fast_paths(module: nn.Module) -> None:
    """Keep torch's transformer layers from computing otherwise in evaluation than their forward methods say.

    In evaluation `nn.TransformerEncoderLayer` calls one fused kernel on the raw weights, which would skip quantization
    without a word. It does so only where this attribute names an activation it knows. `nn.MultiheadAttention` has
    another fused kernel, which no exported program has: its bits would differ from the module's.
    """
    for layer in module.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0
        elif type(layer) is nn.MultiheadAttention:
            layer.__class__ = _UnfusedAttention


class _UnfusedAttention(nn.MultiheadAttention):
    """Attention that computes in evaluation as it does in training."""

    plain_type = nn.MultiheadAttention

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        is_enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return super().forward(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(is_enabled)
