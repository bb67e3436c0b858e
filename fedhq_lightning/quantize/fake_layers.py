"""Layers of the QAT lane, kernel `fake`: torchao's fake quantization, and what it lacks."""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize import torchao_quietly
from fedhq_lightning.quantize.activation_ranges import calibrated_range
from fedhq_lightning.quantize.fused_fake import fake_quantize_weight
from fedhq_lightning.quantize.scheme import LayerScheme
from fedhq_lightning.quantize.static_fake import fake_quantize_static
from fedhq_lightning.quantize.torchao_quietly import (
    IntxFakeQuantizeConfig,
    IntxFakeQuantizer,
    PerToken,
)


class FakeQuantizer(IntxFakeQuantizer):  # type: ignore[misc]  # torchao ships no types
    """torchao's quantizer in fp32, as the grid is deployed, whatever the dtype of `x`.

    Also for no rows and for rows of a single value, on both of which torchao 0.18 fails.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(rows, columns), rounded; gradients pass straight through."""
        if x.numel() == 0:
            return x
        is_single = x.shape[-1] == 1
        # A zero changes neither range: symmetric ranges start at zero, asymmetric ones include it.
        rounded: Tensor = super().forward(F.pad(x.float(), (0, 1)) if is_single else x.float()).to(x.dtype)
        return rounded[..., :1] if is_single else rounded


class WeightFakeQuantizer(nn.Module):
    """A weight's deployment grid in the forward, the identity in the backward (see `fake_quantize_weight`)."""

    def __init__(self, scheme: LayerScheme) -> None:
        super().__init__()
        self.scheme = scheme

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight, (out, in_flat), to its grid."""
        return fake_quantize_weight(weight, self.scheme)


class FakeQuantizedLinear(torchao_quietly.FakeQuantizedLinear):  # type: ignore[misc]  # torchao ships no types
    """torchao's layer; a class of ours so that it can be told from one that the user prepared."""

    plain_type = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        static_range = calibrated_range(self, self.weight_fake_quantizer.scheme)
        if static_range is None or input.numel() == 0:
            output: Tensor = super().forward(input)
            return output
        x = _on_static_grid(self, input.reshape(-1, input.shape[-1]), static_range).view(input.shape)
        return F.linear(x, self.weight_fake_quantizer(self.weight), self.bias)


class FakeQuantizedConv1d(nn.Conv1d):
    """`nn.Conv1d` with fake-quantized weight and, per sample, activations."""

    plain_type = nn.Conv1d
    weight_fake_quantizer: WeightFakeQuantizer
    activation_fake_quantizer: FakeQuantizer | None

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, length) to ([batch,] out channels, out length)."""
        return _fake_quantized_convolution(self, input)


class FakeQuantizedConv2d(nn.Conv2d):
    """`nn.Conv2d` with fake-quantized weight and, per sample, activations."""

    plain_type = nn.Conv2d
    weight_fake_quantizer: WeightFakeQuantizer
    activation_fake_quantizer: FakeQuantizer | None

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, height, width) to ([batch,] out channels, out height, out width)."""
        return _fake_quantized_convolution(self, input)


FakeLayer: TypeAlias = FakeQuantizedLinear | FakeQuantizedConv1d | FakeQuantizedConv2d


def attach_fake_quantizers(layer: FakeLayer, scheme: LayerScheme) -> None:
    """Give a layer the `weight_fake_quantizer` and `activation_fake_quantizer` (or None) of its grid."""
    layer.weight_fake_quantizer = WeightFakeQuantizer(scheme)
    layer.activation_fake_quantizer = None
    if scheme.activation_bits is not None:
        activation = IntxFakeQuantizeConfig(_integer_type(scheme.activation_bits), PerToken(), is_symmetric=False)
        layer.activation_fake_quantizer = FakeQuantizer(activation)


def detach_fake_quantizers(layer: FakeLayer) -> None:
    """Undo `attach_fake_quantizers`."""
    del layer.weight_fake_quantizer, layer.activation_fake_quantizer


def _on_static_grid(layer: FakeLayer, x: Tensor, static_range: Tensor) -> Tensor:
    """(rows, ...) on a static grid, which torchao's quantizers of activations lack."""
    bits = layer.weight_fake_quantizer.scheme.activation_bits
    assert bits is not None
    return fake_quantize_static(x, static_range, bits)


def _integer_type(bits: int) -> torch.dtype:
    kind: torch.dtype = getattr(torch, f"int{bits}")
    return kind


def _fake_quantized_convolution(conv: FakeQuantizedConv1d | FakeQuantizedConv2d, x: Tensor) -> Tensor:
    is_single = x.dim() == 1 + len(conv.kernel_size)
    x = x.unsqueeze(0) if is_single else x
    static_range = calibrated_range(conv, conv.weight_fake_quantizer.scheme)
    if static_range is not None and x.numel():
        x = _on_static_grid(conv, x, static_range)
    elif conv.activation_fake_quantizer is not None:
        # One range per sample: torchao's "per token" takes a sample as one long row.
        x = conv.activation_fake_quantizer(x.flatten(1)).view(x.shape)
    weight: Tensor = conv.weight_fake_quantizer(conv.weight.flatten(1)).view(conv.weight.shape)
    output: Tensor = conv._conv_forward(x, weight, conv.bias)
    return output.squeeze(0) if is_single else output
