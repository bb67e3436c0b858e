import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.deploy.export import export_program
from fedhq_lightning.quantize import qat_layers
from fedhq_lightning.quantize.conversion import convert
from fedhq_lightning.quantize.convolution import pad, padding_amounts
from fedhq_lightning.quantize.grid import quantize_activation, quantize_weight
from fedhq_lightning.quantize.lane_options import LaneOptions
from fedhq_lightning.quantize.lanes import prepare
from fedhq_lightning.quantize.qat_layers import gradient_dtype, has_integer_forward
from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme

SCHEMES = [f"w{bits}a8" for bits in range(2, 9)] + ["w4a4"]
EXPORTED = ["w2a8", "w4a8", "w8a8", "w4a4"]  # the same operations; other bits are other numbers
torch.manual_seed(0)  # before the layers draw their weights
LAYERS = [
    nn.Linear(24, 7),
    nn.Linear(24, 7, bias=False),
    nn.Conv1d(4, 6, 4, stride=2, padding=3),
    nn.Conv1d(4, 6, 3, dilation=2, padding="same", padding_mode="circular", bias=False),
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False),
    nn.Conv2d(4, 6, 3, padding="same", dilation=2),
    nn.Conv2d(4, 6, (2, 4), padding="same"),
    nn.Conv2d(4, 6, 2, padding=2, padding_mode="circular"),
    nn.Conv2d(4, 6, 1, stride=2),
]
LARGE = [nn.Linear(131, 133), nn.Conv2d(5, 251, 3, padding=1), nn.Conv2d(5, 251, 3, stride=2, padding=(0, 1))]
even_kernel = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own copy


def inputs(layer: nn.Module, batch: int = 5) -> Tensor:
    if isinstance(layer, nn.Linear):
        return torch.randn(batch, 3, layer.in_features)
    return torch.randn(batch, layer.in_channels, *[9, 7][: len(layer.kernel_size)])


def qat(layer: nn.Module, scheme: str, kernel: str = "int8") -> nn.Module:
    """`-bf16` after the kernel: with gradients of values."""
    backward = "bf16" if kernel.endswith("-bf16") else "int8"
    options = LaneOptions(kernel.removesuffix("-bf16"), qat_backward=backward)
    return prepare(copy.deepcopy(layer), "qat", QuantScheme(scheme, edge_bits=None), options)


def deployed(layer: nn.Module, scheme: str) -> nn.Module:
    return convert(layer, QuantScheme(scheme, edge_bits=None))


def convolve(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    function = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    return function(pad(x, padding_amounts(layer), layer.padding_mode), weight, bias, layer.stride, 0, layer.dilation)


def factors(layer: nn.Module, scheme: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Integers of input and weight in fp64, zero points subtracted, and their scales, shaped for the output."""
    grid = LayerScheme.parse(scheme)
    dims = (-1,) if isinstance(layer, nn.Linear) else tuple(range(1, x.dim()))
    integers, scale, zero_point = quantize_activation(x.detach(), grid.activation_bits, dims)
    weight, weight_scale = quantize_weight(layer.weight, grid)
    if not isinstance(layer, nn.Linear):
        weight_scale = weight_scale.view(-1, *[1] * len(layer.kernel_size))
    else:
        weight_scale = weight_scale.flatten()
    return (integers - zero_point).double(), scale, weight.view(layer.weight.shape).double(), weight_scale


def reference(layer: nn.Module, scheme: str, x: Tensor) -> Tensor:
    """Integers in fp64, where no sum is rounded; then one scale after the other and the bias, in fp32."""
    x_integers, scale, weight, weight_scale = factors(layer, scheme, x)
    output = convolve(layer, x_integers, weight).float() * weight_scale * scale
    if layer.bias is None:
        return output.detach()
    return (output + layer.bias.view(-1, *[1] * (weight_scale.dim() - 1))).detach()


@even_kernel
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_prepared_is_converted_is_the_integer_reference(layer: nn.Module, scheme: str) -> None:
    prepared, converted = qat(layer, scheme), deployed(layer, scheme)
    for batch in (5, 1):
        x = inputs(layer, batch)
        x[0] *= 100
        expected = reference(layer, scheme, x)
        for input in (x, x.to(memory_format=torch.channels_last) if x.dim() == 4 else x.mT.contiguous().mT):
            torch.testing.assert_close(prepared(input).detach(), expected, atol=0, rtol=0)
            torch.testing.assert_close(converted(input), expected, atol=0, rtol=0)
        torch.testing.assert_close(prepared(x[0]).detach(), expected[0], atol=0, rtol=0)
    assert torch.equal(deployed(prepared, scheme)(x), expected)


class Together(nn.Module):
    """Every layer, so that a scheme needs one export."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        kinds = [nn.Linear, nn.Conv1d, nn.Conv2d]
        given = dict(zip(kinds, inputs, strict=True))

        def kind(layer: Any) -> Any:
            # In a program, integer layers are of other types.
            return getattr(layer, "plain_type", None) or kinds[len(layer.weight_shape) - 2]

        return [layer(given[kind(layer)]) for layer in self.layers]


@even_kernel
@pytest.mark.parametrize("scheme", EXPORTED)
def test_exported_is_prepared(scheme: str, tmp_path: Path) -> None:
    module = Together([copy.deepcopy(LAYERS[i]) for i in (0, 3, 5, 6)])
    converted = deployed(module, scheme)
    prepared = qat(module, scheme)
    first = [inputs(layer, 3) for layer in (LAYERS[0], LAYERS[2], LAYERS[4])]
    loaded = export_program(converted, tuple(first), tmp_path / "model.pt2")
    for batch in (1, 2, 11):
        given = [inputs(layer, batch) for layer in (LAYERS[0], LAYERS[2], LAYERS[4])]
        for exported, own in zip(loaded(*given), prepared(*given), strict=True):
            torch.testing.assert_close(exported, own.detach(), atol=0, rtol=0)


@pytest.mark.parametrize("scheme", ["w4a8", "w3a8"])
@pytest.mark.parametrize("layer", LARGE, ids=repr)
def test_compiled_kernels_give_the_same_bits(layer: nn.Module, scheme: str, tmp_path: Path) -> None:
    prepared, converted = qat(layer, scheme), deployed(layer, scheme)
    x = torch.randn(129, 131) if isinstance(layer, nn.Linear) else torch.randn(9, 5, 23, 21)
    expected = reference(layer, scheme, x)
    layouts = [x, x.t().contiguous().t()] if x.dim() == 2 else [x, x.to(memory_format=torch.channels_last)]
    for given in layouts:
        torch.testing.assert_close(prepared(given).detach(), expected, atol=0, rtol=0)
        torch.testing.assert_close(converted(given), expected, atol=0, rtol=0)
        torch.testing.assert_close(prepared(given[:1]).detach(), expected[:1], atol=0, rtol=0)
    if scheme == "w4a8":
        loaded = export_program(converted, (x,), tmp_path / "model.pt2")
        torch.testing.assert_close(loaded(x), expected, atol=0, rtol=0)


@even_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scheme", ["w4a8", "w3a4"])
@pytest.mark.parametrize("layer", [*LAYERS, LARGE[0], LARGE[1]], ids=repr)
def test_gradients_are_straight_through(
    layer: nn.Module, scheme: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against fp64, on the values that the integers stand for."""
    monkeypatch.setattr(qat_layers, "gradient_dtype", lambda device: dtype)
    prepared = qat(layer, scheme, "int8-bf16")
    if layer in LARGE:
        x = torch.randn(129, 131) if isinstance(layer, nn.Linear) else torch.randn(9, 5, 23, 21)
    else:
        x = inputs(layer)
    x_integers, scale, weight, weight_scale = factors(layer, scheme, x)
    wide = (x_integers * scale).requires_grad_()
    column = weight_scale.reshape(-1, *[1] * (weight.dim() - 1))
    wide_weight = (weight * column).requires_grad_()
    wide_bias = None if layer.bias is None else layer.bias.detach().double().requires_grad_()
    x.requires_grad_()
    output, expected = prepared(x), convolve(layer, wide, wide_weight, wide_bias)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    expected.backward(gradient.double())
    bound = 0.01 if dtype == torch.bfloat16 else 1e-5
    pairs = [(x.grad, wide.grad), (prepared.weight.grad, wide_weight.grad)]
    for actual, wanted in pairs:
        assert actual.dtype == torch.float32
        assert (actual.double() - wanted).norm() <= bound * wanted.norm()
    if wide_bias is not None:
        assert (prepared.bias.grad.double() - wide_bias.grad).norm() <= 1e-5 * wide_bias.grad.norm()


@pytest.mark.parametrize("kernel", ["auto-bf16", "fake"])
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[2], LAYERS[5]], ids=repr)
def test_gradients_of_other_kernels_are_the_same(
    layer: nn.Module, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipped weights too: search clips at 3 bits, and their gradients pass all the same."""
    monkeypatch.setattr(qat_layers, "gradient_dtype", lambda device: torch.float32)
    x, gradients = inputs(layer), []
    target = torch.randn_like(layer(x))
    for prepared in (qat(layer, "w3a8", "int8-bf16"), qat(layer, "w3a8", kernel)):
        given = x.clone().requires_grad_()
        prepared(given).backward(target)
        gradients.append([given.grad, prepared.weight.grad, prepared.bias.grad] if layer.bias is not None
                         else [given.grad, prepared.weight.grad])  # fmt: skip
    for actual, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-4)


SMALL = [LAYERS[0], LAYERS[2], LAYERS[4]]
kernels = pytest.mark.parametrize("kernel", ["int8", "int8-bf16", "auto", "fake"])
backwards = pytest.mark.parametrize("kernel", ["int8", "int8-bf16"])


@kernels
@pytest.mark.parametrize("layer", SMALL, ids=repr)
def test_an_empty_batch(layer: nn.Module, kernel: str) -> None:
    prepared, x = qat(layer, "w4a8", kernel), inputs(layer, 0).requires_grad_()
    output = prepared(x)
    output.sum().backward()
    assert output.shape == layer(x).shape
    assert x.grad.shape == x.shape
    assert torch.equal(prepared.weight.grad, torch.zeros_like(layer.weight))


@kernels
@pytest.mark.parametrize("layer", SMALL, ids=repr)
def test_zeros_give_the_bias_and_no_nan(layer: nn.Module, kernel: str) -> None:
    prepared, x = qat(layer, "w4a8", kernel), torch.zeros_like(inputs(layer)).requires_grad_()
    output = prepared(x)
    shape = (-1,) if isinstance(layer, nn.Linear) else (-1, *[1] * (x.dim() - 2))
    assert torch.equal(output, layer.bias.view(shape).expand_as(output))
    output.backward(torch.ones_like(output))
    assert all(t.grad.isfinite().all() for t in (x, prepared.weight, prepared.bias))
    with torch.no_grad():
        prepared.weight.zero_()
    assert torch.equal(prepared(inputs(layer)), layer.bias.view(shape).expand_as(output))


@kernels
@pytest.mark.parametrize("scale", [1e-36, 1e30])
@pytest.mark.parametrize("layer", SMALL, ids=repr)
def test_tiny_and_huge_inputs(layer: nn.Module, scale: float, kernel: str) -> None:
    x = (inputs(layer) * scale).requires_grad_()
    prepared = qat(layer, "w8a8", kernel)
    output, expected = prepared(x), copy.deepcopy(layer).double()(x.detach().double())
    assert (output.double() - expected).norm() < 0.03 * expected.norm()
    output.backward(torch.ones_like(output))
    for tensor in (x, prepared.weight, prepared.bias):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", SMALL, ids=repr)
def test_what_is_not_finite_shows(layer: nn.Module, bad: float, kernel: str) -> None:
    prepared, x = qat(layer, "w4a8", kernel), inputs(layer)
    x.view(-1)[0] = bad
    output = prepared(x)
    first = output[0, 0] if isinstance(layer, nn.Linear) else output[0]
    assert not first.isfinite().any()
    assert output[1:].isfinite().all()
    with torch.no_grad():
        prepared.weight.view(-1)[0] = bad
    by_channel = prepared(inputs(layer)).movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
    assert not by_channel[0].isfinite().any()
    assert by_channel[1:].isfinite().all()


@backwards
@pytest.mark.parametrize("asked", range(8))
@pytest.mark.parametrize("layer", SMALL, ids=repr)
def test_only_the_gradients_asked_for(layer: nn.Module, asked: int, kernel: str) -> None:
    prepared, x = qat(layer, "w4a8", kernel), inputs(layer)
    whole = qat(layer, "w4a8", kernel)
    given = x.clone().requires_grad_()
    whole(given).square().sum().backward()
    expected = [given.grad, whole.weight.grad, whole.bias.grad]
    tensors = [x, prepared.weight, prepared.bias]
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(bool(asked >> i & 1))
    output = prepared(x)
    assert output.requires_grad == bool(asked)
    if asked:
        output.square().sum().backward()
    for i, tensor in enumerate(tensors):
        assert (tensor.grad is not None) == bool(asked >> i & 1)
        assert tensor.grad is None or torch.equal(tensor.grad, expected[i])


@backwards
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("weight_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("x_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding", [1, "same"])
def test_memory_format_is_the_plain_layers(
    padding: int | str, x_layout: torch.memory_format, weight_layout: torch.memory_format, batch: int, kernel: str
) -> None:
    plain = nn.Conv2d(4, 6, 3, padding=padding).to(memory_format=weight_layout)
    x = torch.randn(batch, 4, 8, 7).to(memory_format=x_layout).requires_grad_()
    prepared = qat(plain, "w4a8", kernel)
    output = prepared(x)
    assert output.stride() == plain(x).stride()
    output.sum().backward()
    assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("kernel", ["int8", "auto"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)], ids=repr)
def test_weights_that_are_contiguous_in_both_formats(layer: nn.Module, channels_last: bool, kernel: str) -> None:
    """One input channel, or a kernel of one: nothing tells the formats apart, and the output follows the input."""
    x = torch.randn(3, layer.in_channels, 9, 8)
    if channels_last and layer.in_channels > 1:
        x = x.to(memory_format=torch.channels_last)
    assert qat(layer, "w4a8", kernel)(x).stride() == layer(x).stride()


@kernels
@pytest.mark.parametrize("layer", SMALL, ids=repr)
def test_autocast_on_the_cpu(layer: nn.Module, kernel: str) -> None:
    prepared, x = qat(layer, "w4a8", kernel), inputs(layer).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output, plain = prepared(x), layer(x)
        loss = output.float().square().mean()
    loss.backward()
    assert output.dtype == plain.dtype == torch.bfloat16
    assert x.grad.dtype == prepared.weight.grad.dtype == torch.float32
    assert (output.detach() - plain).float().norm() < 0.3 * plain.float().norm()


def test_layers_without_one_int8_product_are_fake_quantized() -> None:
    linear, grouped = nn.Linear(24, 7), nn.Conv2d(4, 6, 3, groups=2)
    assert has_integer_forward(linear, LayerScheme(4, 8))
    assert not has_integer_forward(linear, LayerScheme(4, None))
    assert not has_integer_forward(linear, LayerScheme(4, 8, 12))
    assert not has_integer_forward(grouped, LayerScheme(4, 8))
    assert not has_integer_forward(nn.Linear(70_000, 1), LayerScheme(4, 8))
    for layer, scheme in [(linear, "w4"), (linear, "w4a8-g12"), (grouped, "w4a8")]:
        x = inputs(layer)
        torch.testing.assert_close(qat(layer, scheme)(x), deployed(layer, scheme)(x), atol=1e-5, rtol=1e-5)


def test_the_gradient_is_computed_in_what_the_device_is_fast_at(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities, expected in [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known)
        gradient_dtype.cache_clear()
        assert gradient_dtype(cpu) == expected
    for has_bf16, expected in ((False, torch.float32), (True, torch.bfloat16)):
        # Where torch emulates it, which is slow, it says that it is supported unless it is asked so.
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has_bf16: including_emulation or has
        )
        gradient_dtype.cache_clear()
        assert gradient_dtype(torch.device("cuda")) == expected
    gradient_dtype.cache_clear()
