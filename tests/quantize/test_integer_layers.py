import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize.convolution import pad, padding_amounts
from fedhq_lightning.quantize.grid import quantize_activation, quantize_weight
from fedhq_lightning.quantize.integer_layers import INTEGER_TYPES, IntegerLayer, IntegerLinear
from fedhq_lightning.quantize.lane_options import LaneOptions
from fedhq_lightning.quantize.lanes import prepare
from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme

torch.manual_seed(0)  # before the layers draw their weights
LAYERS = [
    nn.Linear(24, 7),
    nn.Linear(24, 7, bias=False),
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False),
    nn.Conv2d(4, 6, 2, padding=2, padding_mode="circular"),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
    nn.Conv2d(4, 8, 2, groups=2, padding=1),
    nn.Conv2d(4, 4, 2, groups=4, stride=2),
    nn.Conv1d(4, 6, 4, stride=2, padding=3),
    nn.Conv1d(4, 6, 2, groups=2, dilation=2),
]
SCHEMES = [f"w{bits}a8" for bits in range(2, 9)] + ["w4a4", "w2a2", "w4", "w8", "w3a8-g4", "w4-g2", "w5a3-g4"]


def inputs(layer: nn.Module, batch: int = 5) -> Tensor:
    torch.manual_seed(1)
    if isinstance(layer, nn.Linear):
        return torch.randn(batch, 3, layer.in_features)
    return torch.randn(batch, layer.in_channels, *[9, 8][: len(layer.kernel_size)])


def integer(layer: nn.Module, scheme: str) -> IntegerLayer:
    return INTEGER_TYPES[type(layer)](layer, LayerScheme.parse(scheme)).eval()


def exact(layer: nn.Module, scheme: LayerScheme, x: Tensor) -> Tensor:
    """What the layer stands for, in fp64, from the grid alone."""
    is_linear = isinstance(layer, nn.Linear)
    dims = (-1,) if is_linear else tuple(range(1, x.dim()))
    wide = x.double()
    if scheme.activation_bits:
        integers, scale, zero_point = quantize_activation(x, scheme.activation_bits, dims)
        wide = (integers.double() - zero_point) * scale.double()
    integers, scale = quantize_weight(layer.weight, scheme)
    weight = (integers.view(*scale.shape, -1).double() * scale.double().unsqueeze(2)).view(layer.weight.shape)
    bias = None if layer.bias is None else layer.bias.double()
    if is_linear:
        return F.linear(wide, weight, bias)
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    wide = pad(wide, padding_amounts(layer), layer.padding_mode)
    return convolve(wide, weight, bias, layer.stride, 0, layer.dilation, layer.groups)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize("kernel", ["fake", "auto"])
def test_fake_quantization_agrees_within_1e_5(layer: nn.Module, scheme: str, kernel: str) -> None:
    x = inputs(layer)
    fake = prepare(copy.deepcopy(layer), "qat", QuantScheme(scheme, edge_bits=None), LaneOptions(kernel))
    torch.testing.assert_close(integer(layer, scheme)(x), fake(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_agrees_with_fp64_up_to_the_last_roundings(layer: nn.Module, scheme: str) -> None:
    x = inputs(layer)
    expected = exact(layer, LayerScheme.parse(scheme), x).detach()
    # Tighter than any fp32 product of 24 terms could promise: a few roundings of the result.
    torch.testing.assert_close(
        integer(layer, scheme)(x).double(), expected, atol=4e-7 * float(expected.abs().max()), rtol=0
    )


@pytest.mark.parametrize("scheme", ["w4a8", "w4a4", "w4", "w3a8-g4", "w4-g2"])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_sample_does_not_depend_on_its_batch(layer: nn.Module, scheme: str) -> None:
    deployed, x = integer(layer, scheme), inputs(layer, 33)
    x[7] *= 1000  # a neighbour's range must not leak
    whole = deployed(x)
    for size in (1, 2, 5, 16):
        assert torch.equal(deployed(x[3 : 3 + size]), whole[3 : 3 + size])


@pytest.mark.parametrize("scheme", ["w4", "w4-g64", "w3a8-g64"])
def test_wide_layers_do_not_depend_on_the_batch_either(scheme: str) -> None:
    # Large enough for blocked matrix kernels, whose order of summation does vary with the number of rows.
    torch.manual_seed(0)
    deployed, x = integer(nn.Linear(1024, 256), scheme), torch.randn(130, 1024)
    whole = deployed(x)
    assert all(torch.equal(deployed(x[i : i + 1]), whole[i : i + 1]) for i in range(0, 130, 13))
    assert torch.equal(deployed(x[:, :]), deployed(x.t().contiguous().t()))


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_shapes_and_memory_layout_are_the_float_layers(layer: nn.Module) -> None:
    x = inputs(layer)
    for scheme in ("w4a8", "w4"):
        deployed = integer(layer, scheme)
        assert deployed(x).shape == layer(x).shape
        assert deployed(x).is_contiguous()
        assert deployed(x[:0]).shape == layer(x[:0]).shape
        first = (0, 0) if isinstance(layer, nn.Linear) else (0,)
        assert deployed(x[first]).shape == layer(x[first]).shape
        assert torch.equal(deployed(x[first]), deployed(x)[first])


@pytest.mark.parametrize("scheme", ["w4a8", "w4", "w4a8-g4"])
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[2], LAYERS[6]], ids=repr)
def test_autocast_changes_nothing(layer: nn.Module, scheme: str) -> None:
    deployed, x = integer(layer, scheme), inputs(layer)
    with torch.autocast("cpu", torch.bfloat16):
        inside = deployed(x)
    assert torch.equal(inside, deployed(x))
    assert deployed(x.bfloat16()).dtype == torch.bfloat16


def test_inputs_longer_than_int32_can_sum() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(70_000, 2)
    deployed = integer(layer, "w8a8")
    x = torch.rand(3, 70_000)
    expected = exact(layer, LayerScheme(8, 8), x).detach()
    torch.testing.assert_close(deployed(x).double(), expected, atol=4e-7 * float(expected.abs().max()), rtol=0)
    assert torch.equal(deployed(x)[1:2], deployed(x[1:2]))


@pytest.mark.parametrize("scheme", ["w4a8", "w4", "w4a8-g4"])
def test_zero_input_gives_the_bias(scheme: str) -> None:
    layer = nn.Linear(24, 7)
    assert torch.equal(integer(layer, scheme)(torch.zeros(2, 24)), layer.bias.detach().expand(2, 7))


def test_state_is_integers_scales_and_bias() -> None:
    state = integer(nn.Conv2d(4, 6, 3), "w3a8-g12").state_dict()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "quantized_weight": (torch.int8, (6, 36)),
        "scale": (torch.float32, (6, 3)),
        "bias": (torch.float32, (6,)),
    }


def test_weight_reads_as_the_rounded_weight() -> None:
    layer = nn.Conv2d(4, 6, 3)
    deployed = integer(layer, "w8a8")
    assert deployed.weight.shape == layer.weight.shape
    assert (deployed.weight - layer.weight).abs().max() <= deployed.scale.max() * 0.51
    assert "w8a8" in repr(deployed)


def test_bias_is_a_copy() -> None:
    layer = nn.Linear(3, 2)
    deployed = IntegerLinear(layer, LayerScheme(8, 8))
    before = deployed.bias.clone()
    with torch.no_grad():
        layer.bias += 1
    assert torch.equal(deployed.bias, before)
