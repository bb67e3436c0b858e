"""Bias correction: what rounding does to the mean output of a layer goes into its bias."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedhq_lightning.quantize.integer_layers import INTEGER_TYPES
from fedhq_lightning.quantize.scheme import QUANTIZABLE_TYPES, LayerScheme, QuantScheme


def correct_bias(module: nn.Module, scheme: QuantScheme, batch_forward: Callable[[nn.Module], object]) -> None:
    """Shift biases so that rounding a layer leaves its mean output, per output channel, where it was.

    To a linear layer's bias that adds `(weight - rounded weight) @ mean input`; to a convolution's the same over its
    patches, zeros of the padding among them. What rounding the activations does to the mean is counted as well. Inputs
    are those that the layer gets once the module is converted: the layers before it rounded and corrected. One forward
    does it for all layers, in the order in which they run. Weights stay unrounded.

    Left as they are: layers without a bias, layers that the forward does not reach, and a bias that several layers
    share. A layer that runs several times gets the mean over all its rows.

    Args:
        module: Plain; its biases are changed in place, all of them after the forward. In the forward it is in
            evaluation mode and takes no gradients.
        scheme: The grid that the weights will be rounded to.
        batch_forward: Runs the module that it is given on calibration examples, such as `lambda module: module(images)`
            with images (batch, ...). What it returns is not used.

    Raises:
        ConfigurationError: See `QuantScheme.for_layers`.
        ValueError: A lane has prepared the module.

    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", its empirical
    variant; Finkelstein et al. 2019, "Fighting Quantization Bias With Bias".
    """
    rounded_layers = _rounded_layers(module, scheme)
    were_training = [part for part in module.modules() if part.training]
    try:
        module.eval()
        with torch.no_grad():
            batch_forward(module)
    finally:
        for each in rounded_layers:
            each.handle.remove()
        for part in were_training:
            part.training = True
    for each in rounded_layers:
        each.write_bias()


def _rounded_layers(module: nn.Module, scheme: QuantScheme) -> "list[_RoundedLayer]":
    grids = scheme.for_layers(module)
    layers = {name: module.get_submodule(name) for name in grids}
    for name, layer in layers.items():
        if type(layer) not in QUANTIZABLE_TYPES:
            raise ValueError(
                f"layer {name!r} is a {type(layer).__name__}: prepared by a lane; restore the module first"
            )
    num_owners = Counter(id(parameter) for part in module.modules() for parameter in part.parameters(recurse=False))
    return [
        _RoundedLayer(layer, grids[name], layer.bias is not None and num_owners[id(layer.bias)] == 1)
        for name, layer in layers.items()
    ]


class _RoundedLayer:
    """Answers for a plain layer as it will be deployed, with its corrected bias, and adds up the corrections.

    Args:
        layer: The plain layer; its own output is what the rounded one is compared with.
        grid: Its grid.
        is_corrected: Whether it has a bias to be corrected.
    """

    def __init__(self, layer: nn.Module, grid: LayerScheme, is_corrected: bool) -> None:
        self._layer = layer
        self._integer_layer = INTEGER_TYPES[type(layer)](layer, grid)  # type: ignore[arg-type]  # the table pairs the types
        self._is_corrected = is_corrected
        self._total: Tensor | None = None  # (out,) sum of errors over rows, fp64
        self._num_rows = 0
        # Hooks of the user's come after it, as they will in the deployed model.
        self.handle = layer.register_forward_hook(self._answer, prepend=True, with_kwargs=True)

    def _answer(self, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> Tensor:
        if output.numel() == 0:
            return output
        rounded: Tensor = self._integer_layer(*arguments, **keywords)
        if not self._is_corrected:
            return rounded
        num_spatial = len(getattr(layer, "kernel_size", ()))
        errors = (output.double() - rounded.double()).movedim(-1 - num_spatial, -1)
        errors = errors.reshape(-1, errors.shape[-1])  # (rows, out)
        self._total = errors.sum(0) if self._total is None else self._total + errors.sum(0)
        self._num_rows += len(errors)
        mean = errors.mean(0).view(-1, *[1] * num_spatial)
        return (rounded + mean).to(output.dtype)

    def write_bias(self) -> None:
        """Add the mean correction; without a forward there is none."""
        if self._total is not None:
            bias = self._layer.get_parameter("bias")
            with torch.no_grad():
                bias.add_((self._total / self._num_rows).to(bias.dtype))
