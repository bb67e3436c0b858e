import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.fake_layers import FakeQuantizedConv1d, FakeQuantizedConv2d, QatLinear
from fedhq_lightning.quantize.grid import quantize_activation, round_to_grid
from fedhq_lightning.quantize.int8_convolution import PtqConv2d
from fedhq_lightning.quantize.int8_training import PtqLinear
from fedhq_lightning.quantize.lanes import prepare, restore
from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme
from fedhq_lightning.types import MODES, Mode


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 6), nn.Linear(6, 3)
    )


def types(module: nn.Module) -> list[type[nn.Module]]:
    return [type(module.get_submodule(name)) for name in ("0", "2", "4", "5")]


def test_ptq_takes_every_layer_but_grouped_convolutions() -> None:
    assert types(prepare(network(), "ptq", QuantScheme())) == [PtqConv2d, nn.Conv2d, PtqLinear, PtqLinear]


def test_qat_takes_every_layer_with_its_own_grid() -> None:
    module = prepare(network(), "qat", QuantScheme("w3a4-g2"))
    assert types(module) == [FakeQuantizedConv2d, FakeQuantizedConv2d, QatLinear, QatLinear]
    bits = [module.get_submodule(name).weight_fake_quantizer.scheme.weight_bits for name in ("0", "2", "4", "5")]
    assert bits == [8, 3, 3, 8]
    assert module[4].weight_fake_quantizer.scheme.group_size == 2
    assert module[4].activation_fake_quantizer.config.dtype == torch.int4


def test_weight_only_schemes_leave_activations_alone() -> None:
    module = prepare(nn.Linear(4, 3), "qat", QuantScheme("w4", edge_bits=None))
    assert module.activation_fake_quantizer is None
    x = torch.randn(2, 4)
    assert torch.equal(module(x), F.linear(x, round_to_grid(module.weight, LayerScheme(4)), module.bias))


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_overridden_layers_stay_plain(mode: Mode) -> None:
    module = prepare(network(), mode, QuantScheme(overrides={"0": "fp", "5": "fp"}))
    assert types(module)[0] is nn.Conv2d
    assert types(module)[3] is nn.Linear
    assert types(module)[2] is not nn.Linear


@pytest.mark.parametrize("mode", MODES)
def test_keys_and_parameters_stay(mode: Mode) -> None:
    module = network()
    parameters, keys = dict(module.named_parameters()), list(module.state_dict())
    assert prepare(module, mode, QuantScheme()) is module
    assert list(module.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
    module(torch.randn(2, 2, 6, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert list(module.state_dict()) == keys


def test_fp_leaves_the_module_alone() -> None:
    assert types(prepare(network(), "fp", QuantScheme())) == types(network())


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_ties_hooks_and_second_names_stay(mode: Mode) -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    module = nn.ModuleDict({"first": first, "second": second, "again": first})
    calls = []
    first.register_forward_hook(lambda *arguments: calls.append(1))
    prepare(module, mode, QuantScheme())
    assert module["first"] is module["again"] is first
    assert first.weight is second.weight
    module["again"](torch.randn(1, 4))
    assert calls == [1]
    assert type(first) is type(second) is not nn.Linear


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_preparing_again_replaces_the_lane(first: Mode, second: Mode) -> None:
    scheme, x = QuantScheme("w3a4"), torch.randn(2, 2, 6, 6)
    twice = prepare(prepare(network(), first, scheme), second, scheme)
    once = prepare(network(), second, scheme)
    assert types(twice) == types(once)
    assert torch.equal(twice(x), once(x))


def test_restored_modules_compute_as_before() -> None:
    x = torch.randn(2, 2, 6, 6)
    restored = restore(prepare(network(), "qat", QuantScheme("w2a2")))
    assert torch.equal(restored(x), network()(x))
    assert len(list(restored.modules())) == len(list(network().modules()))


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_prepared_modules_can_be_copied_after_a_step(mode: Mode) -> None:
    module, x = prepare(network(), mode, QuantScheme()), torch.randn(2, 2, 6, 6)
    module(x).sum().backward()
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@pytest.mark.parametrize("mode", ["int8", "PTQ", ""])
def test_unknown_mode(mode: str) -> None:
    with pytest.raises(ConfigurationError, match=f"mode '{mode}': allowed are fp, ptq, qat"):
        prepare(network(), mode, QuantScheme())  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_nothing_to_quantize(mode: Mode) -> None:
    with pytest.raises(ConfigurationError, match="nothing to quantize"):
        prepare(nn.Sequential(nn.ReLU()), mode, QuantScheme())


@pytest.mark.parametrize("scheme", ["w2a2", "w4a8", "w4", "w3a8-g3"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1),
        nn.Conv1d(3, 2, 3, dilation=2),
    ],
    ids=repr,
)
def test_qat_convolution_is_the_grid_in_front_of_the_convolution(layer: nn.Conv1d | nn.Conv2d, scheme: str) -> None:
    grid, x = LayerScheme.parse(scheme), torch.randn(3, layer.in_channels, *[9, 8][: len(layer.kernel_size)])
    rounded = x
    if grid.activation_bits:
        integers, scale, zero_point = quantize_activation(x, grid.activation_bits, tuple(range(1, x.dim())))
        rounded = (integers.float() - zero_point) * scale
    expected = layer._conv_forward(rounded, round_to_grid(layer.weight, grid), layer.bias)
    prepared = prepare(copy.deepcopy(layer), "qat", QuantScheme(scheme, edge_bits=None))
    assert torch.equal(prepared(x), expected)
    torch.testing.assert_close(prepared(x[0]), expected[0])


def test_qat_gradients_pass_straight_through() -> None:
    layer = prepare(nn.Conv1d(1, 1, 1, bias=False), "qat", QuantScheme("w8a8", edge_bits=None))
    assert isinstance(layer, FakeQuantizedConv1d)
    x = torch.tensor([[[0.1, 0.5, 1.0]]], requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(
        x.grad, round_to_grid(layer.weight, LayerScheme(8)).detach().view(1, 1, 1).expand(1, 1, 3)
    )


@pytest.mark.parametrize("scheme", ["w4a4", "w4"])
@pytest.mark.parametrize("layer", [nn.Linear(1, 5), nn.Conv2d(3, 3, 1, groups=3), nn.Conv1d(1, 4, 1)], ids=repr)
def test_layers_with_a_single_weight_per_channel(layer: nn.Module, scheme: str) -> None:
    x = {nn.Linear: torch.randn(6, 1), nn.Conv2d: torch.randn(2, 3, 1, 1), nn.Conv1d: torch.randn(2, 1, 1)}[type(layer)]
    expected = layer(x)
    prepared = prepare(copy.deepcopy(layer), "qat", QuantScheme(scheme, edge_bits=None))
    # One value and zero: both ends of its own range, so only the weight's clamp at 7 of 7.5 steps is left.
    torch.testing.assert_close(prepared(x), expected, atol=0.08 * float(x.abs().max()), rtol=0.08)


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_an_empty_batch_trains(mode: Mode) -> None:
    module = prepare(network(), mode, QuantScheme("w4a8"))
    module(torch.empty(0, 2, 6, 6)).sum().backward()


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_transformer_encoders_do_not_skip_the_lane_in_evaluation(mode: Mode) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        plain = encoder.eval()(x)
        prepare(encoder, mode, QuantScheme("w2a2", edge_bits=None))
        in_evaluation, in_training = encoder.eval()(x), encoder.train()(x)
    # Attention itself has another kernel in evaluation, equal up to fp32 rounding.
    assert (in_evaluation - in_training).norm() < 0.01 * (plain - in_training).norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_modules_of_another_dtype_train_in_it(mode: Mode, dtype: torch.dtype) -> None:
    module, x = prepare(network().to(dtype), mode, QuantScheme()), torch.randn(2, 2, 6, 6, dtype=dtype)
    output = module(x)
    output.sum().backward()
    assert output.dtype == dtype
    assert all(parameter.grad.dtype == dtype and parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_activations_are_rounded_as_they_are_deployed_whatever_their_dtype(dtype: torch.dtype) -> None:
    layer = prepare(nn.Linear(16, 4).to(dtype), "qat", QuantScheme("w4a8", edge_bits=None))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    integers, scale, zero_point = quantize_activation(x, 8, (1,))
    assert torch.equal(layer.activation_fake_quantizer(x), ((integers.float() - zero_point) * scale).to(dtype))
