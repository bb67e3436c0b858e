"""Layers of the QAT lane, kernel `fake`: torchao's fake quantization, and what it lacks."""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize.scheme import LayerScheme
from fedhq_lightning.quantize.torchao_quietly import (
    _DTYPE_TO_BIT_WIDTH,
    _DTYPE_TO_QVALUE_BOUNDS,
    FakeQuantizedLinear,
    IntxFakeQuantizeConfig,
    IntxFakeQuantizer,
    MappingType,
    PerAxis,
    PerGroup,
    PerToken,
    _fake_quantize_per_channel_group,
    get_group_qparams_symmetric,
)


class FakeQuantizer(IntxFakeQuantizer):  # type: ignore[misc]  # torchao ships no types
    """torchao's quantizer, also for no rows and for rows of a single value, on both of which torchao 0.18 fails."""

    def forward(self, x: Tensor) -> Tensor:
        """(rows, columns), rounded; gradients pass straight through."""
        if x.numel() == 0:
            return x
        is_single = x.shape[-1] == 1
        # A zero changes neither range: symmetric ranges start at zero, asymmetric ones include it.
        rounded: Tensor = super().forward(F.pad(x, (0, 1)) if is_single else x)
        return rounded[..., :1] if is_single else rounded


class WeightFakeQuantizer(FakeQuantizer):
    """torchao's quantizer on the grid of `fedhq_lightning.quantize.grid`, whose scales clip no weight."""

    def _per_channel_or_group_forward(self, x: Tensor) -> Tensor:
        bits = _DTYPE_TO_BIT_WIDTH[self.config.dtype]
        granularity = self.config.granularity
        group_size = x.shape[-1] if isinstance(granularity, PerAxis) else granularity.group_size
        self.scale, self.zero_point = get_group_qparams_symmetric(
            x, bits, group_size, mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR
        )
        bounds = _DTYPE_TO_QVALUE_BOUNDS[self.config.dtype]
        rounded: Tensor = _fake_quantize_per_channel_group(x, self.scale, self.zero_point, *bounds, group_size)
        return rounded


class QatLinear(FakeQuantizedLinear):  # type: ignore[misc]  # torchao ships no types
    """torchao's layer; a class of ours so that it can be told from one that the user prepared."""

    plain_type = nn.Linear


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


FakeLayer: TypeAlias = QatLinear | FakeQuantizedConv1d | FakeQuantizedConv2d


def attach_fake_quantizers(layer: FakeLayer, scheme: LayerScheme) -> None:
    """Give a layer the `weight_fake_quantizer` and `activation_fake_quantizer` (or None) of its grid."""
    granularity = PerAxis(0) if scheme.group_size is None else PerGroup(scheme.group_size)
    weight = IntxFakeQuantizeConfig(_integer_type(scheme.weight_bits), granularity, is_symmetric=True)
    layer.weight_fake_quantizer = WeightFakeQuantizer(weight)
    layer.activation_fake_quantizer = None
    if scheme.activation_bits is not None:
        activation = IntxFakeQuantizeConfig(_integer_type(scheme.activation_bits), PerToken(), is_symmetric=False)
        layer.activation_fake_quantizer = FakeQuantizer(activation)


def detach_fake_quantizers(layer: FakeLayer) -> None:
    """Undo `attach_fake_quantizers`."""
    del layer.weight_fake_quantizer, layer.activation_fake_quantizer


def _integer_type(bits: int) -> torch.dtype:
    kind: torch.dtype = getattr(torch, f"int{bits}")
    return kind


def _fake_quantized_convolution(conv: FakeQuantizedConv1d | FakeQuantizedConv2d, x: Tensor) -> Tensor:
    is_single = x.dim() == 1 + len(conv.kernel_size)
    x = x.unsqueeze(0) if is_single else x
    if conv.activation_fake_quantizer is not None:
        # One range per sample: torchao's "per token" takes a sample as one long row.
        x = conv.activation_fake_quantizer(x.flatten(1)).view(x.shape)
    weight: Tensor = conv.weight_fake_quantizer(conv.weight.flatten(1)).view(conv.weight.shape)
    output: Tensor = conv._conv_forward(x, weight, conv.bias)
    return output.squeeze(0) if is_single else output
