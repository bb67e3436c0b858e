import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.quantize import kernel_choice
from fedhq_lightning.quantize.int8_convolution import PtqConv1d, PtqConv2d
from fedhq_lightning.quantize.int8_training import (
    PtqLinear,
    int8_linear,
    noise_seed,
    quantize_rows,
    round_to_scale,
    uniform_noise,
)


def int8(layer: nn.Module) -> nn.Module:
    layer.kernel = "int8"
    return layer


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


def rounded(x: Tensor, dim: int) -> Tensor:
    """Values in fp64 after rounding to 127 steps of the largest magnitude along `dim`."""
    scale = (x.float().abs().amax(dim, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).smallest_normal)
    return (x.float() * (1 / scale)).round().double() * scale.double()


def scale_of(x: Tensor) -> Tensor:
    return (x.abs().amax(1, keepdim=True) / 127).double()


def test_rows_are_symmetric_and_reach_the_ends() -> None:
    x = torch.randn(5, 20)
    integers, scale = quantize_rows(x)
    assert integers.dtype == torch.int8
    assert torch.equal(integers.abs().amax(1), torch.full((5,), 127, dtype=torch.int8))
    assert ((integers * scale - x).abs() <= scale / 2 * 1.0001).all()


@pytest.mark.parametrize("shape", [(6, 20), (2, 3, 20), (20,), (1, 20), (140, 133)])
def test_output_and_gradients_are_the_products_of_rounded_factors(shape: tuple[int, ...]) -> None:
    layer = int8(PtqLinear(shape[-1], 67))
    x = torch.randn(shape, requires_grad=True)
    output = layer(x)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    rows, gradients = x.detach().reshape(-1, shape[-1]), gradient.reshape(-1, 67)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    assert output.shape == (*shape[:-1], 67)

    x_rounded, weight_rounded = rounded(rows, 1), rounded(weight, 1)
    expected = x_rounded @ weight_rounded.t() + bias.double()
    assert relative_error(output.detach().reshape(-1, 67), expected) < 1e-6
    # The gradient takes up the other factor's scale before it is rounded; that factor's integers are left.
    x_scale, weight_scale = scale_of(rows), scale_of(weight)
    by_rows = rounded(gradients * weight_scale.t().float(), 1)
    assert relative_error(x.grad.reshape(-1, shape[-1]), by_rows @ (weight_rounded / weight_scale)) < 1e-6
    by_columns = rounded(gradients * x_scale.float(), 0)
    assert relative_error(layer.weight.grad, by_columns.t() @ (x_rounded / x_scale)) < 1e-6
    assert relative_error(layer.bias.grad, gradients.double().sum(0)) < 1e-6


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every second", "expanded"])
def test_output_and_gradients_are_within_two_percent_of_fp64(layout: str, scale: float) -> None:
    layer = int8(PtqLinear(48, 33, bias=False))
    views = {
        "contiguous": lambda x: x[:64, :48],
        "transposed": lambda x: x[:48, :64].t(),
        "every second": lambda x: x[:, ::2],
        "expanded": lambda x: x[:1, :48].expand(64, 48),
    }
    x = views[layout](torch.randn(64, 96) * scale).requires_grad_()
    output = layer(x)
    gradient = torch.randn(33, 64).t()
    output.backward(gradient)
    wide = [t.detach().double().requires_grad_() for t in (x, layer.weight)]
    expected = F.linear(*wide)
    expected.backward(gradient.double())
    assert relative_error(output, expected) < 0.02
    for actual, wanted in zip((x, layer.weight), wide, strict=True):
        assert relative_error(actual.grad, wanted.grad) < 0.02
    assert not torch.equal(output, F.linear(x, layer.weight))  # it is int8 after all


LAYERS = [PtqLinear(4, 3), PtqConv2d(4, 3, 2), PtqConv1d(4, 3, 2)]


def inputs(layer: nn.Module, batch: int) -> Tensor:
    return torch.randn(batch, 4, *{PtqLinear: (), PtqConv2d: (5, 6), PtqConv1d: (5,)}[type(layer)])


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_an_empty_batch(layer: nn.Module) -> None:
    x = inputs(layer, 0).requires_grad_()
    int8(layer).zero_grad()
    output = layer(x)
    output.sum().backward()
    assert output.shape[0] == 0
    assert x.grad.shape == x.shape
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))
    assert torch.equal(layer.bias.grad, torch.zeros_like(layer.bias))


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_zeros_give_the_bias_and_no_nan(layer: nn.Module) -> None:
    x = torch.zeros_like(inputs(layer, 3)).requires_grad_()
    int8(layer).zero_grad()
    output = layer(x)
    assert torch.equal(output, layer.bias.view(1, -1, *[1] * (x.dim() - 2)).expand_as(output))
    output.backward(torch.zeros_like(output))
    for gradient in (x.grad, layer.weight.grad, layer.bias.grad):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize("scale", [1e-36, 1e30])
def test_tiny_and_huge_inputs(layer: nn.Module, scale: float) -> None:
    """At 1e-36 a step is fp32's smallest normal number, so there are fewer of them: no NaN, and a coarse result."""
    x = (inputs(layer, 3) * scale).requires_grad_()
    int8(layer).zero_grad()
    plain = layer.plain_type.forward(layer.double(), x.detach().double()).detach()
    output = layer.float()(x)
    output.backward(torch.randn_like(output))
    assert relative_error(output, plain) < 0.05
    for gradient in (x.grad, layer.weight.grad, layer.bias.grad):
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_what_is_not_finite_shows(layer: nn.Module, bad: float) -> None:
    x = inputs(layer, 3)
    x.view(-1)[1] = bad
    output = int8(layer)(x)
    assert not output[0].isfinite().any()
    if isinstance(layer, PtqLinear):
        assert output[1:].isfinite().all()
    x, gradient = inputs(layer, 3).requires_grad_(), torch.randn_like(output)
    gradient.view(-1)[0] = bad
    layer.zero_grad()
    layer(x).backward(gradient)
    assert not x.grad.isfinite().all()
    assert not layer.weight.grad[0].isfinite().any()


@pytest.mark.parametrize("layer", [PtqLinear(8, 5), PtqConv2d(8, 5, 3)], ids=repr)
def test_autocast_on_the_cpu(layer: nn.Module) -> None:
    int8(layer)
    x = torch.randn(4, 8, 6, 6) if isinstance(layer, PtqConv2d) else torch.randn(4, 8)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        loss = output.float().square().mean()
    loss.backward()
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, layer(x).bfloat16())
    assert x.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32


@pytest.mark.parametrize("asked", range(8))
@pytest.mark.parametrize("kind", [PtqLinear, PtqConv2d, PtqConv1d])
def test_only_the_gradients_asked_for(kind: type[nn.Module], asked: int) -> None:
    layer = int8(kind(4, 3, **({} if kind is PtqLinear else {"kernel_size": 2})))
    x = inputs(layer, 3).requires_grad_()
    layer(x).square().sum().backward()
    expected = [x.grad, layer.weight.grad, layer.bias.grad]
    tensors = [x.detach().clone(), layer.weight, layer.bias]
    layer.zero_grad()
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(bool(asked >> i & 1))
    output = layer(tensors[0])
    assert output.requires_grad == bool(asked)
    if asked:
        output.square().sum().backward()
    for i, tensor in enumerate(tensors):
        assert (tensor.grad is not None) == bool(asked >> i & 1)
        assert tensor.grad is None or torch.equal(tensor.grad, expected[i])


def test_without_a_bias() -> None:
    weight = torch.randn(5, 8, requires_grad=True)
    int8_linear(torch.randn(3, 8), weight, None).sum().backward()
    assert weight.grad.any()


@pytest.mark.usefixtures("torch_kernels")
def test_an_automatic_layer_that_is_small_is_bitwise_the_plain_one() -> None:
    layer, plain = PtqLinear(16, 8), nn.Linear(16, 8)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 16)
    assert torch.equal(layer(x), plain(x))
    assert not torch.equal(int8(layer)(x), plain(x))


@pytest.mark.usefixtures("torch_kernels")
def test_an_automatic_layer_stays_plain_where_integers_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "has_fast_integers", lambda device: False)
    layer, x = PtqLinear(512, 512), torch.randn(64, 512)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_stochastic_rounding_is_unbiased() -> None:
    x, scale = torch.linspace(-1.9, 1.9, 77).view(7, 11), torch.ones(7, 1)
    draws = torch.stack([round_to_scale(x, scale, torch.tensor(seed * 7919)) for seed in range(4000)])
    assert ((draws - x).abs() < 1).all()
    # The standard error is at most 0.5 / sqrt(4000) = 0.008.
    assert (draws.mean(0) - x).abs().max() < 0.035
    assert abs(float((draws.mean(0) - x).mean())) < 0.004
    # Neighbours are rounded independently.
    errors = (draws - x).flatten(1)
    assert torch.corrcoef(errors.t()).fill_diagonal_(0).nan_to_num().abs().max() < 0.1


def test_noise_is_uniform() -> None:
    noise = uniform_noise(torch.empty(300, 400), torch.tensor(12345))
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = torch.histc(noise, 20, 0, 1)
    assert (counts / 6000 - 1).abs().max() < 0.06  # five standard deviations of a count


@pytest.mark.parametrize("kind", [PtqLinear, PtqConv2d, PtqConv1d])
def test_stochastic_rounding_follows_torchs_generator(kind: type[nn.Module]) -> None:
    layer = int8(kind(4, 3, **({} if kind is PtqLinear else {"kernel_size": 2})))
    x = inputs(layer, 6)
    target = torch.randn_like(layer(x))

    def gradient(stochastic: bool, seed: int | None = None) -> Tensor:
        layer.stochastic_rounding = stochastic
        layer.zero_grad()
        if seed is not None:
            torch.manual_seed(seed)
        layer(x).backward(target)
        return layer.weight.grad.clone()

    nearest, state = gradient(False), torch.get_rng_state()
    assert torch.equal(gradient(False), nearest)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn where it is off
    first, second = gradient(True, 5), gradient(True)
    assert not torch.equal(first, second)
    assert not torch.equal(first, nearest)
    assert torch.equal(gradient(True, 5), first)
    mean = torch.stack([gradient(True) for _ in range(300)]).mean(0)
    assert relative_error(mean, nearest) < 0.02
    assert noise_seed(False) is None


def test_stochastic_rounding_never_leaves_the_range() -> None:
    """A largest value that rounds up past 127 would come back with the other sign: 127 + 0.9999999 is 128 in fp32."""
    x = torch.full((1, 2**22), 3.0)
    scale = torch.full((1, 1), 3.0 / 127)
    assert round_to_scale(x, scale, torch.tensor(1)).abs().max() <= 127
    assert round_to_scale(-x, scale, torch.tensor(1)).abs().max() <= 127


def test_training_lowers_the_loss() -> None:
    model = nn.Sequential(int8(PtqConv2d(1, 4, 3)), nn.ReLU(), nn.Flatten(), int8(PtqLinear(64, 3)))
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
