import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import conversion
from fedhq_lightning.quantize.fake_layers import FakeQuantizedConv2d, FakeQuantizedLinear
from fedhq_lightning.quantize.grid import quantize_activation, round_to_grid
from fedhq_lightning.quantize.int8_convolution import PtqConv2d
from fedhq_lightning.quantize.int8_training import PtqLinear
from fedhq_lightning.quantize.lane_options import LaneOptions
from fedhq_lightning.quantize.lanes import PtqTrainingConfig, QatTrainingConfig, prepare, restore
from fedhq_lightning.quantize.qat_layers import QatConv2d, QatLinear
from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme
from fedhq_lightning.quantize.torchao_quietly import quantize_
from fedhq_lightning.types import MODES, Mode


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 6), nn.Linear(6, 3)
    )


QAT_KERNELS = ["auto", "int8", "fake"]
ALL_INT8 = {"ptq": {"*": "int8"}}
LANES = [("ptq", LaneOptions()), ("ptq", LaneOptions(layer_kernels=ALL_INT8))]
LANES += [("qat", LaneOptions(qat_kernel=kernel)) for kernel in QAT_KERNELS]
lanes = pytest.mark.parametrize(("mode", "options"), LANES, ids=["ptq", "ptq-int8", "qat", "qat-int8", "qat-fake"])


def types(module: nn.Module) -> list[type[nn.Module]]:
    return [type(module.get_submodule(name)) for name in ("0", "2", "4", "5")]


def test_ptq_takes_every_layer_but_grouped_convolutions() -> None:
    assert types(prepare(network(), "ptq", QuantScheme())) == [PtqConv2d, nn.Conv2d, PtqLinear, PtqLinear]


@pytest.mark.parametrize("kernel", QAT_KERNELS)
def test_qat_takes_every_layer_with_its_own_grid(kernel: str) -> None:
    module = prepare(network(), "qat", QuantScheme("w3a4-g2"), LaneOptions(kernel))
    layers = [module.get_submodule(name) for name in ("0", "2", "4", "5")]
    if kernel == "fake":
        assert types(module) == [FakeQuantizedConv2d, FakeQuantizedConv2d, FakeQuantizedLinear, FakeQuantizedLinear]
        schemes = [layer.weight_fake_quantizer.scheme for layer in layers]
        assert module[4].activation_fake_quantizer.config.dtype == torch.int4
    else:
        assert types(module) == [QatConv2d, QatConv2d, QatLinear, QatLinear]
        schemes = [layer.scheme for layer in layers]
        assert [layer.kernel for layer in layers] == [kernel] * 4
    assert [str(scheme) for scheme in schemes] == ["w8a8", "w3a4-g2", "w3a4-g2", "w8a8"]


def test_layers_take_the_kernels_of_their_patterns() -> None:
    options = LaneOptions(layer_kernels={"qat": {"4": "fake", "[05]": "int8"}, "ptq": {"4": "fp"}})
    module = prepare(network(), "qat", QuantScheme(), options)
    assert types(module) == [QatConv2d, QatConv2d, FakeQuantizedLinear, QatLinear]
    assert [module[i].kernel for i in (0, 2, 5)] == ["int8", "auto", "int8"]
    module = prepare(module, "ptq", QuantScheme(), options)
    assert types(module) == [PtqConv2d, nn.Conv2d, PtqLinear, PtqLinear]
    assert [module[i].kernel for i in (0, 4, 5)] == ["auto", "fp", "auto"]


def test_a_pattern_that_matches_no_layer() -> None:
    with pytest.raises(ConfigurationError, match="ptq 'head' matches no layer; quantized layers are 0, 2, 4, 5"):
        prepare(network(), "ptq", QuantScheme(), LaneOptions(layer_kernels={"ptq": {"head": "fp"}}))


@pytest.mark.parametrize("kernel", QAT_KERNELS)
def test_weight_only_schemes_leave_activations_alone(kernel: str) -> None:
    module = prepare(nn.Linear(4, 3), "qat", QuantScheme("w4", edge_bits=None), LaneOptions(kernel))
    x = torch.randn(2, 4)
    assert torch.equal(module(x), F.linear(x, round_to_grid(module.weight, LayerScheme(4)), module.bias))


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_overridden_layers_stay_plain(mode: Mode) -> None:
    module = prepare(network(), mode, QuantScheme(overrides={"0": "fp", "5": "fp"}))
    assert types(module)[0] is nn.Conv2d
    assert types(module)[3] is nn.Linear
    assert types(module)[2] is not nn.Linear


@lanes
def test_keys_and_parameters_stay(mode: Mode, options: LaneOptions) -> None:
    module = network()
    parameters, keys = dict(module.named_parameters()), list(module.state_dict())
    assert prepare(module, mode, QuantScheme(), options) is module
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


@lanes
def test_restored_modules_are_as_before(mode: Mode, options: LaneOptions) -> None:
    module = network()
    before = {name: set(vars(part)) for name, part in module.named_modules()}
    x = torch.randn(2, 2, 6, 6)
    prepare(module, mode, QuantScheme("w2a2"), options)(x).sum().backward()
    assert restore(module) is module
    assert {name: set(vars(part)) for name, part in module.named_modules()} == before
    assert [type(part) for part in module.modules()] == [type(part) for part in network().modules()]
    assert torch.equal(module(x), network()(x))


@lanes
def test_prepared_modules_can_be_copied_after_a_step(mode: Mode, options: LaneOptions) -> None:
    module, x = prepare(network(), mode, QuantScheme(), options), torch.randn(2, 2, 6, 6)
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
@pytest.mark.usefixtures("torch_kernels")
@pytest.mark.parametrize("kernel", ["auto", "fake"])
def test_qat_convolution_is_the_grid_in_front_of_the_convolution(
    layer: nn.Conv1d | nn.Conv2d, scheme: str, kernel: str
) -> None:
    grid, x = LayerScheme.parse(scheme), torch.randn(3, layer.in_channels, *[9, 8][: len(layer.kernel_size)])
    rounded = x
    if grid.activation_bits:
        integers, scale, zero_point = quantize_activation(x, grid.activation_bits, tuple(range(1, x.dim())))
        rounded = (integers.float() - zero_point) * scale
    expected = layer._conv_forward(rounded, round_to_grid(layer.weight, grid), layer.bias)
    options = LaneOptions(kernel)
    prepared = prepare(copy.deepcopy(layer), "qat", QuantScheme(scheme, edge_bits=None), options)
    assert torch.equal(prepared(x), expected)
    torch.testing.assert_close(prepared(x[0]), expected[0])


@pytest.mark.parametrize("scheme", ["w4a4", "w4"])
@pytest.mark.parametrize("layer", [nn.Linear(1, 5), nn.Conv2d(3, 3, 1, groups=3), nn.Conv1d(1, 4, 1)], ids=repr)
@pytest.mark.parametrize("kernel", QAT_KERNELS)
def test_layers_with_a_single_weight_per_channel(layer: nn.Module, scheme: str, kernel: str) -> None:
    x = {nn.Linear: torch.randn(6, 1), nn.Conv2d: torch.randn(2, 3, 1, 1), nn.Conv1d: torch.randn(2, 1, 1)}[type(layer)]
    expected = layer(x)
    prepared = prepare(copy.deepcopy(layer), "qat", QuantScheme(scheme, edge_bits=None), LaneOptions(kernel))
    # The weight is its own range; so is a lone activation with zero, while three channels share 4 bits.
    is_alone = x[0].numel() == 1 or scheme == "w4"
    tolerance = 1e-6 if is_alone else 0.08 * float(x.abs().max())
    torch.testing.assert_close(prepared(x), expected, atol=tolerance, rtol=1e-5 if is_alone else 0.08)


@lanes
def test_an_empty_batch_trains(mode: Mode, options: LaneOptions) -> None:
    module = prepare(network(), mode, QuantScheme("w4a8"), options)
    module(torch.empty(0, 2, 6, 6)).sum().backward()


@pytest.mark.parametrize(("mode", "options"), LANES[1:], ids=["ptq-int8", "qat", "qat-int8", "qat-fake"])
def test_transformer_encoders_do_not_skip_the_lane_in_evaluation(mode: Mode, options: LaneOptions) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        plain = encoder.eval()(x)
        prepare(encoder, mode, QuantScheme("w2a2", edge_bits=None), options)
        in_evaluation, in_training = encoder.eval()(x), encoder.train()(x)
    # Attention itself has another kernel in evaluation, equal up to fp32 rounding.
    assert (in_evaluation - in_training).norm() < 0.01 * (plain - in_training).norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@lanes
def test_modules_of_another_dtype_train_in_it(mode: Mode, options: LaneOptions, dtype: torch.dtype) -> None:
    module, x = prepare(network().to(dtype), mode, QuantScheme(), options), torch.randn(2, 2, 6, 6, dtype=dtype)
    output = module(x)
    output.sum().backward()
    assert output.dtype == dtype
    assert all(parameter.grad.dtype == dtype and parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_activations_are_rounded_as_they_are_deployed_whatever_their_dtype(dtype: torch.dtype) -> None:
    scheme = QuantScheme("w4a8", edge_bits=None)
    layer = prepare(nn.Linear(16, 4).to(dtype), "qat", scheme, LaneOptions("fake"))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    integers, scale, zero_point = quantize_activation(x, 8, (1,))
    assert torch.equal(layer.activation_fake_quantizer(x), ((integers.float() - zero_point) * scale).to(dtype))


@lanes
def test_the_lanes_learn_in_a_plain_loop(mode: Mode, options: LaneOptions) -> None:
    """Without federation and without Lightning: torchao's `quantize_` with our configs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3))
    kernel = options.kernels_of(mode, ["layer"])["layer"]
    config = PtqTrainingConfig(kernel, True) if mode == "ptq" else QatTrainingConfig(LayerScheme(4, 8), kernel)
    quantize_(model, config, filter_fn=lambda layer, name: type(layer) in (nn.Linear, nn.Conv2d))
    x, y = 0.5 * torch.randn(30, 1, 6, 6), torch.arange(30) % 3
    x += y.view(-1, 1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    first = F.cross_entropy(model(x), y).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
    deployed = conversion.convert(model, QuantScheme("w4a8", edge_bits=None))
    assert (deployed(x).argmax(1) == y).float().mean() >= 0.9
