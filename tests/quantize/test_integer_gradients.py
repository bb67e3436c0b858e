import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize import LaneOptions, QuantScheme, calibrate_ranges, int8_training, prepare, restore
from fedhq_lightning.quantize.convolution import padding_amounts
from fedhq_lightning.quantize.grid import quantize_activation, quantize_weight
from fedhq_lightning.quantize.native.lanes import kernels_of_torch
from fedhq_lightning.quantize.scheme import LayerScheme

LAYERS = [
    nn.Linear(24, 7),
    nn.Conv1d(4, 6, 4, stride=2, padding=3),
    nn.Conv1d(4, 6, 3, dilation=2, padding="same", padding_mode="circular"),
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    nn.Conv2d(4, 6, (2, 4), padding="same"),
    nn.Conv2d(4, 6, 1, stride=2),
    nn.Linear(131, 133),
    nn.Conv2d(5, 67, 3, padding=1),
]
even_kernel = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own copy


def inputs(layer: nn.Module) -> Tensor:
    """Of a mean that is not zero, so that zero points matter."""
    if isinstance(layer, nn.Linear):
        return torch.randn(70, layer.in_features) + 1
    return torch.randn(5, layer.in_channels, *[19, 17][: len(layer.kernel_size)]) + 1


def qat(layer: nn.Module, scheme: str = "w4a8", backward: str = "int8") -> nn.Module:
    options = LaneOptions("int8", qat_backward=backward)  # type: ignore[arg-type]  # one of the two
    return prepare(copy.deepcopy(layer), "qat", QuantScheme(scheme, edge_bits=None), options)


def gradients(layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    layer(x).backward(gradient)
    return [each.grad for each in (x, layer.weight, layer.bias)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def rounded(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """In fp64, after rounding to 127 steps of the largest magnitude along `dims`."""
    scale = values.abs().amax(dims, keepdim=True) / 127
    return (values * (1 / scale)).round().double() * scale.double()


@even_kernel
@pytest.mark.parametrize("scheme", ["w4a8", "w2a8", "w8a4"])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_gradients_are_near_those_of_the_values(layer: nn.Module, scheme: str) -> None:
    x = inputs(layer)
    gradient = torch.randn_like(layer(x))
    ours, theirs = (gradients(qat(layer, scheme, backward), x, gradient) for backward in ("int8", "bf16"))
    for actual, expected in zip(ours[:2], theirs[:2], strict=True):
        assert 1e-4 < relative_error(actual, expected) < 0.02  # it is int8 after all
    assert torch.equal(ours[2], theirs[2])
    assert ours[0].stride() == x.stride()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[3], LAYERS[4], LAYERS[7], LAYERS[8]], ids=repr)
def test_gradients_are_products_of_rounded_factors(layer: nn.Module, own: bool) -> None:
    """The gradient takes up the other factor's scale before it is rounded; that factor's integers are left."""
    grid, x = LayerScheme(4, 8), inputs(layer)
    gradient = torch.randn_like(layer(x))
    is_linear = isinstance(layer, nn.Linear)
    inner = (1,) if is_linear else (1, 2, 3)
    integers, x_scale, zero_point = quantize_activation(x, 8, inner)
    weight, weight_scale = quantize_weight(layer.weight, grid)
    weight, column = weight.view(layer.weight.shape).double(), weight_scale.view(1, -1, *[1] * (x.dim() - 2))
    for_x = rounded(gradient * column, inner)
    for_weight = rounded(gradient * x_scale, (0,) if is_linear else (0, 2, 3))
    values = (integers - zero_point).double()
    if is_linear:
        expected = for_x @ weight, for_weight.t() @ values
    else:
        left, right, top, bottom = padding_amounts(layer)
        padded = F.pad(values, (left, right, top, bottom))
        moves = layer.stride, 0, layer.dilation
        whole = torch.nn.grad.conv2d_input(padded.shape, weight, for_x, *moves)
        expected = (
            whole[:, :, top : top + x.shape[2], left : left + x.shape[3]],
            torch.nn.grad.conv2d_weight(padded, weight.shape, for_weight, *moves),
        )
    prepared = qat(layer)
    if own:
        found = gradients(prepared, x, gradient)
    else:
        with kernels_of_torch():
            found = gradients(prepared, x, gradient)
    for actual, wanted in zip(found, expected, strict=False):
        assert relative_error(actual, wanted) < 1e-6


def test_zero_points_of_many_rows_are_taken_off_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = qat(LAYERS[0])
    x = inputs(layer)
    gradient = torch.randn(len(x), 7)
    with kernels_of_torch():
        expected = gradients(layer, x, gradient)
        monkeypatch.setattr(int8_training, "MAX_INNER_SIZE", 10)
        monkeypatch.setattr("fedhq_lightning.quantize.integer_matmul.MAX_INNER_SIZE", 24)
        assert all(torch.equal(*pair) for pair in zip(gradients(layer, x, gradient), expected, strict=True))


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[3]], ids=repr)
def test_static_ranges_stay_with_values(layer: nn.Module) -> None:
    x, scheme = inputs(layer), QuantScheme("w4a8s", edge_bits=None)
    gradient, found = torch.randn_like(layer(x)), []
    for backward in ("int8", "bf16"):
        prepared = qat(nn.Sequential(layer), "w4a8s", backward)
        calibrate_ranges(prepared, scheme, lambda module: module(x))
        found.append(gradients(prepared[0], x, gradient))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("asked", range(8))
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[1], LAYERS[3]], ids=repr)
def test_only_the_gradients_asked_for(layer: nn.Module, asked: int) -> None:
    prepared, x = qat(layer), inputs(layer)
    gradient = torch.randn_like(layer(x))
    expected = gradients(prepared, x, gradient)
    for own in (True, False):
        given, again = x.clone(), qat(layer)
        tensors = [given, again.weight, again.bias]
        for i, tensor in enumerate(tensors):
            tensor.requires_grad_(bool(asked >> i & 1))
        if own:
            output = again(given)
        else:
            with kernels_of_torch():
                output = again(given)
        assert output.requires_grad == bool(asked)
        if asked:
            output.backward(gradient)
        for i, tensor in enumerate(tensors):
            assert (tensor.grad is not None) == bool(asked >> i & 1)
            assert tensor.grad is None or torch.equal(tensor.grad, expected[i])


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[3]], ids=repr)
def test_zeros_give_no_nan_and_what_is_not_finite_shows(layer: nn.Module) -> None:
    prepared = qat(layer)
    x = torch.zeros_like(inputs(layer))
    gradient = torch.zeros_like(layer(x))
    for each in gradients(prepared, x, gradient):
        assert torch.equal(each, torch.zeros_like(each))
    gradient[(0,) * gradient.dim()] = torch.nan
    found = gradients(prepared, inputs(layer), gradient)
    assert not found[0][0].isfinite().any()
    assert found[0][1:].isfinite().all()
    assert not found[1][0].isfinite().any()
    assert found[1][1:].isfinite().all()


def test_a_lane_that_is_restored_keeps_nothing() -> None:
    layer = qat(LAYERS[0])
    assert layer.qat_backward == "int8"
    assert "qat_backward" not in vars(restore(layer))
