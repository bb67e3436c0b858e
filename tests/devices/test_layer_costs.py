import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedhq_lightning.devices import measure_costs

FLOAT = 4


def by_name(costs):
    return {cost.name: cost for cost in costs}


def test_linear_and_convolution_by_hand():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 10))
    batch = torch.randn(5, 3, 16, 16)
    costs = by_name(measure_costs(lambda: F.cross_entropy(module(batch), torch.zeros(5, dtype=torch.long)), module))

    assert list(costs) == ["0", "1", "3", "(root)"]
    convolution, relu, linear, loss = costs.values()
    assert (convolution.kind, relu.kind, linear.kind) == ("convolution", "other", "linear")
    assert convolution.forward_flops == 2 * 5 * 16 * 16 * 8 * 27
    assert convolution.parameter_bytes == FLOAT * (8 * 27 + 8)
    assert convolution.input_bytes == FLOAT * 5 * 3 * 256
    assert convolution.output_bytes == FLOAT * 5 * 8 * 256
    assert (relu.forward_flops, relu.parameter_bytes, relu.quantizable) == (0, 0, False)
    assert relu.activation_bytes == 2 * FLOAT * 5 * 8 * 256
    assert linear.forward_flops == 2 * 5 * 2048 * 10
    assert linear.quantizable
    assert convolution.quantizable
    assert (convolution.rows, convolution.weight_shape) == (5 * 256, (8, 3, 3, 3))
    assert (linear.rows, linear.weight_shape) == (5, (10, 2048))
    assert [cost.operators for cost in costs.values()] == [1, 1, 1, 3]  # labels, softmax, loss
    assert (loss.kind, loss.forward_flops) == ("other", 0)


def test_flops_are_those_of_the_forward_with_and_without_autograd():
    module = nn.Linear(6, 4)
    batch = torch.randn(3, 6)
    with torch.no_grad():
        without = measure_costs(lambda: module(batch), module)
    assert measure_costs(lambda: module(batch), module) == without
    assert without[0].name == "(root)"
    assert without[0].forward_flops == 2 * 3 * 6 * 4


def test_nested_modules_are_not_counted_twice():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.inner(x) @ torch.ones(4, 4) * self.scale

    module = nn.Sequential(Block(), nn.Linear(4, 2))
    batch = torch.randn(7, 4)
    costs = by_name(measure_costs(lambda: module(batch), module))
    assert {name: cost.forward_flops for name, cost in costs.items()} == {
        "0.inner.0": 2 * 7 * 16,
        "0.inner.1": 2 * 7 * 16,
        "0": 2 * 7 * 16,
        "1": 2 * 7 * 8,
    }
    assert costs["0"].parameter_bytes == FLOAT * 4


def test_a_layer_called_twice_moves_twice_and_is_held_once():
    layer = nn.Linear(4, 4)
    module = nn.Sequential(layer)
    batch = torch.randn(2, 4)
    (cost,) = measure_costs(lambda: module[0](module[0](batch)), module)
    assert (cost.calls, cost.operators, cost.rows) == (2, 2, 2)
    assert cost.forward_flops == 2 * (2 * 2 * 16)
    assert cost.input_bytes == 2 * FLOAT * 8
    assert cost.parameter_bytes == FLOAT * 20


def test_attention_on_the_cpu_is_counted():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    module = nn.Sequential(Attention())
    tokens = torch.randn(2, 3, 16, 8)
    (cost,) = measure_costs(lambda: module(tokens), module)
    assert cost.forward_flops == 2 * (2 * 2 * 3 * 16 * 16 * 8)
    assert not cost.quantizable


def test_work_outside_any_module_is_the_roots():
    module = nn.ModuleDict({"linear": nn.Linear(4, 4)})
    other = torch.randn(4, 9)
    costs = by_name(measure_costs(lambda: module["linear"](torch.randn(2, 4)) @ other, module))
    assert costs["(root)"].forward_flops == 2 * 2 * 4 * 9
    assert costs["linear"].forward_flops == 2 * 2 * 4 * 4


def test_functions_count_where_they_are_called():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return F.relu(self.linear(x).view(8, 1, 4)).transpose(0, 2) + 1.0  # views cost nothing

    module = nn.Sequential(Block())
    costs = by_name(measure_costs(lambda: module(torch.randn(8, 4)).sum(), module))
    assert costs["0"].operators == 2
    assert (costs["0"].input_bytes, costs["0"].output_bytes) == (2 * FLOAT * 32, 2 * FLOAT * 32)
    assert costs["(root)"].operators == 2  # the batch is made, the answer summed


def test_the_scheme_says_what_is_quantized():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    batch = torch.randn(2, 4)
    costs = measure_costs(lambda: module(batch), module, quantized={"0": True, "2": False})
    assert [cost.quantizable for cost in costs] == [True, False, True]
    assert [cost.quantizes_activations for cost in costs] == [True, False, False]


def test_grouped_convolutions_are_marked():
    module = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 4, 1))
    costs = measure_costs(lambda: module(torch.randn(1, 4, 9)), module)  # the batch is made, by nobody's layer
    assert [cost.grouped for cost in costs] == [True, False, False]
    assert costs[0].forward_flops == 2 * 7 * 4 * 3


def test_frozen_layers_are_marked():
    weightless = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4, bias=False))
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), weightless, nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU())
    module[3].weight.requires_grad_(False)
    module[4].requires_grad_(False)
    costs = {cost.name: cost.trained for cost in measure_costs(lambda: module(torch.ones(2, 4)), module)}
    assert {name: costs[name] for name in "01234"} == {"0": True, "1": True, "2": True, "3": False, "4": False}


def test_random_numbers_and_hooks_are_put_back():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    batch = torch.randn(2, 4)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    measure_costs(lambda: module(batch), module)
    assert torch.equal(torch.rand(3), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_hooks_are_removed_when_the_step_fails():
    module = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        measure_costs(lambda: module(torch.randn(2, 5)), module)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_a_scaled_batch_scales_what_a_larger_batch_has():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    small = measure_costs(lambda: module(torch.randn(2, 1, 8, 8)), module)
    large = measure_costs(lambda: module(torch.randn(6, 1, 8, 8)), module)
    assert [cost.scaled(3.0) for cost in small] == large
