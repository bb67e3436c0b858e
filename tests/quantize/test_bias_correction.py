import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.bias_correction import correct_bias
from fedhq_lightning.quantize.conversion import convert
from fedhq_lightning.quantize.grid import round_to_grid
from fedhq_lightning.quantize.lanes import prepare
from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme

WEIGHTS_ONLY = QuantScheme("w3", edge_bits=None)
WITH_ACTIVATIONS = QuantScheme("w2a4", edge_bits=3)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect", groups=2),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Conv1d(6, 5, 3, dilation=2),
        nn.Flatten(),
        nn.Linear(5 * 12, 7),
        nn.Dropout(0.5),
        nn.Linear(7, 3),
    )


def images() -> Tensor:
    return torch.randn(16, 2, 8, 8) + 0.5


@contextmanager
def seen(module: nn.Module, name: str) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inputs and outputs of one layer."""
    pairs: list[tuple[Tensor, Tensor]] = []
    layer = module.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, arguments, output: pairs.append((arguments[0], output)))
    yield pairs
    handle.remove()


def channel_means(output: Tensor, num_spatial: int) -> Tensor:
    return output.double().movedim(-1 - num_spatial, -1).flatten(0, -2).mean(0)


def test_a_linear_layer_gets_the_textbook_correction() -> None:
    layer, x = nn.Linear(20, 6), torch.randn(64, 20) + 1
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    correct_bias(layer, WEIGHTS_ONLY, lambda module: module(x))
    expected = (weight - round_to_grid(weight, LayerScheme(3))) @ x.mean(0)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(layer.bias.detach() - bias, expected, atol=1e-5, rtol=0)
    assert torch.equal(layer.weight, weight)


def test_a_convolution_corrects_by_the_mean_patch_with_its_padding() -> None:
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.rand(8, 3, 5, 5)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()  # type: ignore[union-attr]  # it has one
    correct_bias(layer, WEIGHTS_ONLY, lambda module: module(x))
    mean_patch = torch.nn.functional.unfold(x, 3, padding=1).mean((0, 2))
    expected = (weight - round_to_grid(weight, LayerScheme(3))).flatten(1) @ mean_patch
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(layer.bias.detach() - bias, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheme", [WEIGHTS_ONLY, WITH_ACTIVATIONS, QuantScheme("w4a8")], ids=str)
@pytest.mark.parametrize(("name", "num_spatial"), [("2", 2), ("5", 1), ("7", 0), ("9", 0)])
def test_mean_outputs_survive_conversion(scheme: QuantScheme, name: str, num_spatial: int) -> None:
    module, x = network().eval(), images()
    before = copy.deepcopy(module)
    correct_bias(module, scheme, lambda module: module(x))
    converted = convert(module, scheme)
    with seen(converted, name) as pairs, torch.no_grad():
        converted(x)
    arrived, output = pairs[0]
    with torch.no_grad():
        unrounded = before.get_submodule(name)(arrived)
    assert (output - unrounded).abs().max() > 1e-4
    torch.testing.assert_close(
        channel_means(output, num_spatial), channel_means(unrounded, num_spatial), atol=2e-5, rtol=0
    )


def test_without_correction_means_move() -> None:
    module, x = network().eval(), images()
    with torch.no_grad():
        moved = convert(module, WITH_ACTIVATIONS)(x).mean(0) - module(x).mean(0)
    assert moved.abs().max() > 1e-2


def test_only_biases_change() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).train()
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    x = images()
    correct_bias(module, WITH_ACTIVATIONS, lambda module: module(x))
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.bias", "3.bias"}
    assert [part.training for part in module] == [True, False, True, True]
    assert not any(part._forward_hooks for part in module.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


def test_layers_without_bias_or_rows_are_skipped() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 4))
    before = copy.deepcopy(module.state_dict())
    correct_bias(module, WEIGHTS_ONLY, lambda module: module(torch.zeros(0, 4)))
    correct_bias(module, WEIGHTS_ONLY, lambda module: module[1](torch.zeros(3, 4)))
    correct_bias(module, WEIGHTS_ONLY, lambda module: None)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_shared_bias_stays_and_a_shared_layer_gets_the_mean_of_its_calls() -> None:
    first, second, x = nn.Linear(8, 8), nn.Linear(8, 8), torch.randn(32, 8) + 1
    second.bias = first.bias
    before = first.bias.detach().clone()
    correct_bias(nn.Sequential(first, second), WEIGHTS_ONLY, lambda module: module(x))
    assert torch.equal(first.bias, before)

    together, apart = nn.Linear(8, 8), nn.Linear(8, 8)
    apart.load_state_dict(together.state_dict())
    correct_bias(nn.ModuleList([together, together]), WEIGHTS_ONLY, lambda both: (both[0](x[:8]), both[1](input=x[8:])))
    correct_bias(apart, WEIGHTS_ONLY, lambda module: module(x))
    torch.testing.assert_close(together.bias, apart.bias, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(8, 3), (8,)), (nn.Conv2d(2, 3, 3), (2, 5, 5))], ids=str)
def test_an_example_without_batch_dimension(layer: nn.Module, shape: tuple[int, ...]) -> None:
    batched, x = copy.deepcopy(layer), torch.randn(shape)
    correct_bias(batched, WEIGHTS_ONLY, lambda module: module(x.unsqueeze(0)))
    correct_bias(layer, WEIGHTS_ONLY, lambda module: module(x))
    torch.testing.assert_close(layer.bias, batched.bias, atol=1e-6, rtol=0)


def test_layers_inside_a_transformer_are_reached() -> None:
    encoder, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(4, 5, 8) + 1
    before = copy.deepcopy(encoder.state_dict())
    correct_bias(encoder, WEIGHTS_ONLY, lambda module: module(x))
    for name in ("linear1.bias", "linear2.bias"):
        assert not torch.equal(encoder.state_dict()[name], before[name])


def test_users_hooks_see_the_deployed_output() -> None:
    layer, x, outputs = nn.Linear(6, 4), torch.randn(9, 6), []
    layer.register_forward_hook(lambda *given: outputs.append(given[-1]))
    correct_bias(layer, WITH_ACTIVATIONS, lambda module: module(x))
    convert(layer, WITH_ACTIVATIONS)(x)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-6, rtol=0)


def test_a_failing_forward_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="shapes"):
        correct_bias(module, WEIGHTS_ONLY, lambda module: module(module[0](torch.ones(3, 4))[:, :2]))
    assert module.training
    assert not module[0]._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_prepared_modules_and_nothing_to_quantize_are_refused() -> None:
    module = prepare(nn.Sequential(nn.Linear(4, 4)), "qat", WEIGHTS_ONLY)
    with pytest.raises(ValueError, match="layer '0' is a QatLinear"):
        correct_bias(module, WEIGHTS_ONLY, lambda module: module(torch.ones(1, 4)))
    with pytest.raises(ConfigurationError, match="nothing to quantize"):
        correct_bias(nn.ReLU(), WEIGHTS_ONLY, lambda module: module(torch.ones(1, 4)))
