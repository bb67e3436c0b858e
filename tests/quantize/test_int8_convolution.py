import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize import int8_convolution, integer_convolution
from fedhq_lightning.quantize.int8_convolution import PtqConv1d, PtqConv2d
from fedhq_lightning.quantize.integer_convolution import has_convolution_kernel

TYPES = {nn.Conv1d: PtqConv1d, nn.Conv2d: PtqConv2d}
CASES = [
    nn.Conv2d(4, 5, 3),
    nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(1, 2), bias=False),
    nn.Conv2d(4, 5, 3, stride=(3, 2), dilation=(1, 2), padding=1),
    nn.Conv2d(4, 5, 3, dilation=2, padding="same"),
    nn.Conv2d(4, 5, 3, padding="valid"),
    nn.Conv2d(4, 5, (2, 4), padding="same"),
    nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 5, 3, padding=(0, 2), padding_mode="circular"),
    nn.Conv2d(4, 5, 1, stride=2, padding=2),
    nn.Conv2d(1, 5, 3, padding=1),
    nn.Conv2d(4, 1, 3, padding=1),
    nn.Conv1d(4, 5, 4, stride=2, padding=3),
    nn.Conv1d(4, 5, 3, dilation=3),
    nn.Conv1d(4, 5, 3, padding="same", padding_mode="replicate"),
]
EVEN_KERNEL = "ignore:Using padding='same' with even kernel lengths"  # torch's, about its own copy


def int8(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    layer.__class__ = TYPES[type(layer)]
    layer.kernel = "int8"
    return layer


def images(layer: nn.Module, batch: int = 3) -> Tensor:
    return torch.randn(batch, layer.in_channels, *[11, 9][: len(layer.kernel_size)])


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


@pytest.fixture(params=["onednn", "patches"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "patches":
        monkeypatch.setattr(integer_convolution, "has_convolution_kernel", lambda *_: False)
    elif not has_convolution_kernel(torch.device("cpu")):
        pytest.skip("this CPU has no exact int8 convolution")
    return request.param


@pytest.mark.filterwarnings(EVEN_KERNEL)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("is_positive", [False, True])
@pytest.mark.parametrize("layer", CASES, ids=repr)
def test_output_and_gradients_are_within_two_percent_of_fp64(
    layer: nn.Module, is_positive: bool, channels_last: bool, path: str
) -> None:
    x = images(layer).relu() if is_positive else images(layer)
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    prepared, plain = int8(layer), copy.deepcopy(layer).double()
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    output, expected = prepared(x), plain(wide)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    expected.backward(gradient.double())
    pairs = [(output, expected), (x.grad, wide.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(prepared.parameters(), plain.parameters(), strict=True)]
    for actual, wanted in pairs:
        assert actual.shape == wanted.shape
        assert relative_error(actual, wanted) < 0.02
    assert relative_error(output, expected) > 1e-4  # it is int8 after all


@pytest.mark.parametrize("is_positive", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(4, 7, 6), (9, 29, 31)], ids=["eager", "compiled"])
def test_output_and_gradients_are_the_convolutions_of_rounded_factors(
    size: tuple[int, int, int], stride: int, is_positive: bool, path: str
) -> None:
    layer = int8(nn.Conv2d(2, 3, 3, stride=stride, padding=1))
    x = torch.randn(size[0], 2, *size[1:]) * torch.tensor([1.0, 30.0]).view(1, 2, 1, 1)
    x = (x.relu() if is_positive else x).requires_grad_()
    output = layer(x)
    gradient = torch.randn_like(output)
    output.backward(gradient)

    def integers(values: Tensor, dims: tuple[int, ...], highest: int = 127) -> tuple[Tensor, Tensor]:
        scale = values.detach().abs().amax(dims, keepdim=True) / highest
        return (values.detach() * (1 / scale)).round().double(), scale

    image, x_scale = integers(x, (0, 2, 3), 255 if is_positive else 127)
    weight, weight_scale = integers(layer.weight * x_scale, (1, 2, 3))
    expected = F.conv2d(image, weight * weight_scale.double(), layer.bias.double(), stride, 1)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-6)
    signal, scale = integers(gradient, (0, 2, 3))
    by_input, by_input_scale = integers(layer.weight.transpose(0, 1) * scale, (1, 2, 3))
    by_input = (by_input * by_input_scale.double()).transpose(0, 1)
    grad_x = torch.nn.grad.conv2d_input(x.shape, by_input, signal, stride, 1)
    torch.testing.assert_close(x.grad.double(), grad_x, atol=1e-5, rtol=1e-6)
    grad_weight = torch.nn.grad.conv2d_weight(image * x_scale, layer.weight.shape, signal * scale, stride, 1)
    torch.testing.assert_close(layer.weight.grad.double(), grad_weight, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(layer.bias.grad.double(), gradient.double().sum((0, 2, 3)), atol=1e-4, rtol=1e-5)


def test_the_weight_gradient_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = int8(nn.Conv2d(4, 5, 3, padding=1)), torch.randn(7, 4, 6, 5)

    def gradient() -> Tensor:
        layer.zero_grad()
        layer(x).square().sum().backward()
        return layer.weight.grad.clone()

    whole = gradient()
    for size in (1, 2 * 6 * 5 * 4 * 9, 5 * 6 * 5 * 4 * 9):
        monkeypatch.setattr(int8_convolution, "_BYTES_AT_ONCE", size)
        assert torch.equal(gradient(), whole)
    monkeypatch.setattr(int8_convolution, "MAX_INNER_SIZE", 100)
    assert torch.equal(gradient(), whole)


def test_a_sample_without_a_batch() -> None:
    for layer in (int8(nn.Conv2d(4, 5, 3, padding=1)), int8(nn.Conv1d(4, 5, 3, stride=2))):
        x = images(layer, 1)
        assert torch.equal(layer(x[0]), layer(x)[0])
        single = x[0].clone().requires_grad_()
        layer(single).sum().backward()
        assert single.grad.shape == single.shape


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("weight_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("x_layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_the_plain_layers(
    x_layout: torch.memory_format, weight_layout: torch.memory_format, batch: int
) -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=weight_layout)
    x = torch.randn(batch, 4, 8, 7).to(memory_format=x_layout).requires_grad_()
    layer, expected = int8(plain), plain(x)
    output = layer(x)
    assert output.stride() == expected.stride()
    output.sum().backward()
    assert x.grad.stride() == x.stride()


@pytest.mark.usefixtures("torch_kernels")
def test_an_automatic_layer_that_is_small_is_bitwise_the_plain_one() -> None:
    plain, x = nn.Conv2d(4, 5, 3), torch.randn(2, 4, 8, 8)
    layer = int8(plain)
    assert not torch.equal(layer(x), plain(x))
    layer.kernel = "auto"
    assert torch.equal(layer(x), plain(x))
    layer.kernel = "fp"
    assert torch.equal(layer(x), plain(x))
