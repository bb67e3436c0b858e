from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize.int8_convolution import PtqConv1d, PtqConv2d
from fedhq_lightning.quantize.int8_training import PtqLinear, int8_product, quantize_symmetric


def assert_within_bound(actual: Tensor, a: Tensor, b: Tensor) -> None:
    """The product of two rounded factors, row by row: each factor is off by half a step at most."""
    a, b = a.double(), b.double()
    step_a = a.abs().amax(1, keepdim=True) / 127
    step_b = b.abs().amax(1, keepdim=True) / 127
    inner = a.shape[1]
    bound = (
        step_a / 2 * b.abs().sum(1) + a.abs().sum(1, keepdim=True) * step_b.t() / 2 + inner * step_a * step_b.t() / 4
    )
    error = (actual.double() - a @ b.t()).abs()
    # A little more for fp32's own rounding of values and scales.
    assert (error <= bound * 1.001 + 1e-12).all()
    # And it is not the fp32 product by another name.
    assert error.max() > 1e-5 * (a @ b.t()).abs().max()


def test_rows_are_symmetric_and_reach_the_ends() -> None:
    x = torch.randn(5, 20)
    integers, scale = quantize_symmetric(x, (1,))
    assert integers.dtype == torch.int8
    assert torch.equal(integers.abs().amax(1), torch.full((5,), 127, dtype=torch.int8))
    assert ((integers * scale - x).abs() <= scale / 2 * 1.0001).all()


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-36, 1e20])
def test_product_keeps_small_and_large_values(scale: float) -> None:
    a, b = torch.randn(7, 33) * scale, torch.randn(9, 33)
    assert_within_bound(int8_product(a, b) / scale, a.double() / scale, b)


def test_zeros_give_zeros() -> None:
    assert torch.equal(int8_product(torch.zeros(3, 4), torch.randn(2, 4)), torch.zeros(3, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    a = torch.randn(2, 8)
    a[0, 3] = bad
    product = int8_product(a, torch.randn(3, 8))
    assert not product[0].isfinite().any()
    assert product[1].isfinite().all()


@pytest.mark.parametrize("shape", [(6, 20), (2, 3, 20), (20,), (1, 20)])
def test_output_and_gradients_of_linear(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = PtqLinear(20, 11)
    x = torch.randn(shape, requires_grad=True)
    output = layer(x)
    grad = torch.randn_like(output)
    output.backward(grad)
    rows, grads = x.detach().reshape(-1, 20), grad.reshape(-1, 11)
    weight = layer.weight.detach()
    assert output.shape == (*shape[:-1], 11)
    assert_within_bound((output - layer.bias).detach().reshape(-1, 11), rows, weight)
    assert_within_bound(x.grad.reshape(-1, 20), grads, weight.t())
    if rows.shape[0] > 1:
        assert_within_bound(layer.weight.grad, grads.t(), rows.t())
    torch.testing.assert_close(layer.bias.grad, grads.sum(0))


CONVOLUTIONS = [
    (nn.Conv2d, PtqConv2d, {"kernel_size": 3}),
    (nn.Conv2d, PtqConv2d, {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "bias": False}),
    (nn.Conv2d, PtqConv2d, {"kernel_size": 3, "dilation": 2, "padding": "same"}),
    (nn.Conv2d, PtqConv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    (nn.Conv1d, PtqConv1d, {"kernel_size": 4, "stride": 2, "padding": 3}),
    (nn.Conv1d, PtqConv1d, {"kernel_size": 3, "dilation": 3}),
]


@pytest.mark.parametrize(
    ("plain", "int8", "arguments", "channels_last"),
    [(*case, False) for case in CONVOLUTIONS] + [(*case, True) for case in CONVOLUTIONS if case[0] is nn.Conv2d],
)
def test_convolutions_follow_the_float_ones(
    plain: Callable[..., nn.Module], int8: Callable[..., nn.Module], arguments: dict, channels_last: bool
) -> None:
    torch.manual_seed(0)
    reference, layer = plain(4, 5, **arguments), int8(4, 5, **arguments)
    layer.load_state_dict(reference.state_dict())
    size = [11, 9][: 1 if plain is nn.Conv1d else 2]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(3, 4, *size).to(memory_format=memory_format).requires_grad_()
    y = x.detach().clone().requires_grad_()
    output, expected = layer(x), reference(y)
    grad = torch.randn_like(expected)
    output.backward(grad)
    expected.backward(grad)
    assert output.is_contiguous()
    pairs = [(output, expected), (x.grad, y.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(layer.parameters(), reference.parameters(), strict=True)]
    for actual, wanted in pairs:
        assert actual.shape == wanted.shape
        # int8 rounding is about 1/250 of the largest value of a row; the mean error is well below 2%.
        assert (actual - wanted).norm() < 0.02 * wanted.norm()
    assert not torch.equal(output, expected)
    single = layer(x[0])
    assert single.shape == expected.shape[1:]
    assert torch.equal(single, layer(x[:1])[0])


def test_convolution_output_and_gradients_are_the_products_of_rounded_factors() -> None:
    layer = PtqConv2d(2, 3, 3, stride=2, padding=1)
    x = torch.randn(4, 2, 7, 6, requires_grad=True)
    output = layer(x)
    grad = torch.randn_like(output)
    output.backward(grad)

    def rounded(values: Tensor, *dims: int) -> Tensor:
        integers, scale = quantize_symmetric(values.detach(), dims)
        return integers.double() * scale.double()

    weight = rounded(layer.weight, 1, 2, 3)
    expected = F.conv2d(rounded(x, 1, 2, 3), weight, layer.bias.double(), 2, 1)
    torch.testing.assert_close(output.double(), expected, atol=1e-6, rtol=1e-6)
    by_sample, by_input = rounded(grad, 1, 2, 3), rounded(layer.weight, 0, 2, 3)
    grad_x = torch.nn.grad.conv2d_input(x.shape, by_input, by_sample, 2, 1)
    torch.testing.assert_close(x.grad.double(), grad_x, atol=1e-6, rtol=1e-6)
    grad_weight = torch.nn.grad.conv2d_weight(rounded(x, 0, 2, 3), layer.weight.shape, rounded(grad, 0, 2, 3), 2, 1)
    torch.testing.assert_close(layer.weight.grad.double(), grad_weight, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(layer.bias.grad, grad.sum((0, 2, 3)))


@pytest.mark.parametrize("layer", [PtqLinear(4, 3), PtqConv2d(4, 3, 2), PtqConv1d(4, 3, 2)], ids=repr)
def test_an_empty_batch(layer: nn.Module) -> None:
    shape = {PtqLinear: (0, 4), PtqConv2d: (0, 4, 5, 5), PtqConv1d: (0, 4, 5)}[type(layer)]
    x = torch.randn(shape, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert output.shape[0] == 0
    assert x.grad.shape == x.shape
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))
    assert torch.equal(layer.bias.grad, torch.zeros_like(layer.bias))


def test_strided_inputs() -> None:
    layer, x = PtqLinear(6, 4), torch.randn(6, 5)
    assert torch.equal(layer(x.t()), layer(x.t().contiguous()))


@pytest.mark.parametrize("layer", [PtqLinear(8, 5), PtqConv2d(8, 5, 3)], ids=repr)
def test_autocast_on_the_cpu(layer: nn.Module) -> None:
    x = torch.randn(4, 8, 6, 6) if isinstance(layer, PtqConv2d) else torch.randn(4, 8)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        loss = output.float().square().mean()
    loss.backward()
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, layer(x).bfloat16())
    assert {tensor.grad.dtype for tensor in (x, *layer.parameters())} == {torch.float32}


def test_only_the_gradients_asked_for() -> None:
    layer = PtqLinear(4, 3)
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 2.0))


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(PtqConv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), PtqLinear(64, 3))
    x, y = torch.randn(60, 1, 6, 6), torch.arange(60) % 3
    x += y.view(-1, 1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
