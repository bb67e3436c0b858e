"""Which kernel the clock counts for a layer is the one that `prepare` gives it."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedhq_lightning.devices import LayerCost, load_profile, measure_costs
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models import LeNet5, ResNet20, ViT
from fedhq_lightning.quantize import LaneOptions, LayerScheme, QuantScheme, kernel_choice, prepare

LAPTOP, PI, NANO = (load_profile(name) for name in ("laptop-ryzen-7-7840u", "raspberry-pi-4", "jetson-nano"))
LARGE = LayerCost("a", "linear", 1e9, 4e4, 1e4, 2e4, True, rows=512.0, weight_shape=(512, 512))
SMALL = replace(LARGE, rows=16.0)


@pytest.mark.parametrize(
    ("mode", "profile", "word", "large", "small"),
    [
        ("fp", LAPTOP, "auto", "fp", "fp"),
        ("ptq", LAPTOP, "auto", "int8", "fp"),
        ("ptq", LAPTOP, "int8", "int8", "int8"),
        ("ptq", LAPTOP, "fp", "fp", "fp"),
        ("ptq", PI, "auto", "fp", "fp"),
        ("ptq", PI, "int8", "fp", "fp"),  # what the device lacks gives way
        ("qat", LAPTOP, "auto", "int8", "fused"),
        ("qat", LAPTOP, "int8", "int8", "int8"),
        ("qat", LAPTOP, "fake", "fake", "fake"),
        ("qat", PI, "auto", "fused", "fused"),
        ("qat", PI, "int8", "fused", "fused"),
        ("qat", NANO, "auto", "fake", "fake"),
    ],
)
def test_by_mode_device_and_recipe(mode, profile, word, large, small):
    kernels = LaneKernels({mode: {"a": word}})
    assert kernels.choose(LARGE, mode, profile).at(LARGE.rows) == large
    assert kernels.choose(SMALL, mode, profile).at(SMALL.rows) == small


@pytest.mark.parametrize("change", [{"grouped": True}, {"quantizes_activations": False}])
def test_what_has_no_integer_forward_is_fused(change):
    assert LaneKernels().choose(replace(LARGE, **change), "qat", LAPTOP).large == "fused"
    unnamed = LaneKernels(without_integers=frozenset({"a"}))
    assert unnamed.choose(LARGE, "qat", LAPTOP).large == "fused"
    assert unnamed.choose(LARGE, "ptq", LAPTOP).large == "int8"


MODELS = {
    "lenet": (LeNet5, (8, 1, 28, 28)),
    "vit": (lambda: ViT(patch_size=4, width=192, depth=1, num_heads=3), (8, 1, 28, 28)),
    "resnet": (lambda: ResNet20(1, width=32), (8, 1, 28, 28)),
}
LANES = {
    "auto": LaneOptions(),
    "fake": LaneOptions(qat_kernel="fake"),
    "int8": LaneOptions(qat_kernel="int8", layer_kernels={"ptq": {"*": "int8"}}),
    "edges": LaneOptions(layer_kernels={"ptq": {"*classifier*": "int8"}, "qat": {"*classifier*": "fake"}}),
}


@pytest.mark.usefixtures("torch_kernels")
@pytest.mark.parametrize("scheme", ["w4a8", "w4"])
@pytest.mark.parametrize("lanes", LANES.values(), ids=LANES)
@pytest.mark.parametrize(("build", "shape"), MODELS.values(), ids=MODELS)
def test_kernels_are_those_that_prepare_gives(monkeypatch, build, shape, lanes, scheme):
    """Seen in the autograd graph of every prepared layer, on a host that is fast at integers."""
    monkeypatch.setattr(kernel_choice, "has_fast_integers", lambda device: True)
    module, images = build(), torch.randn(shape)
    grids = QuantScheme(scheme).for_layers(module)
    quantized = {name: grid.activation_bits is not None for name, grid in grids.items()}
    costs = measure_costs(lambda: F.cross_entropy(module(images), torch.zeros(8, dtype=torch.long)), module, quantized)
    kernels = LaneKernels.of(module, {f"{name}.weight": grid for name, grid in grids.items()}, lanes)
    for mode in ("ptq", "qat"):
        prepared, found = prepare(module, mode, QuantScheme(scheme), lanes), dict[str, str]()
        hooks = [
            prepared.get_submodule(name).register_forward_hook(
                lambda layer, args, output, name=name, found=found: found.update({name: _kernel_seen(layer, output)})
            )
            for name in grids
        ]
        prepared(images)
        for hook in hooks:
            hook.remove()
        prepare(module, "fp", QuantScheme(scheme))
        counted = {cost.name: kernels.choose(cost, mode, LAPTOP).at(cost.rows) for cost in costs if cost.quantizable}
        assert counted == found


def _kernel_seen(layer: nn.Module, output: torch.Tensor) -> str:
    kind, nodes = type(layer).__name__, [output.grad_fn]
    if kind.startswith("FakeQuantized"):
        return "fake"
    for _ in range(4):  # a layer's own operators: the product lies a few views behind its answer
        if any(re.match(r"_(Int8|Qat)(Linear|Convolution)Backward", type(node).__name__) for node in nodes):
            return "int8"
        if any(re.match(r"(Addmm|Mm|Convolution)Backward", type(node).__name__) for node in nodes):
            break
        nodes = [each for node in nodes for each, _ in node.next_functions if each is not None]
    return "fused" if kind.startswith("Qat") else "fp"


def test_searched_weights_are_those_of_few_bits():
    module = LeNet5()
    kernels = LaneKernels.of(module, QuantScheme("w4a8").for_layers(module))
    assert kernels.searched == {"features.3", "classifier.1", "classifier.3"}  # first and last have 8 bits
    assert not LaneKernels.of(module, QuantScheme("w8a8").for_layers(module)).searched
    assert LaneKernels.of(module, {}) == LaneKernels({"ptq": {}, "qat": {}})


def test_a_pattern_that_matches_nothing_is_refused():
    module = LeNet5()
    with pytest.raises(ConfigurationError, match="matches no layer"):
        LaneKernels.of(module, QuantScheme("w4a8").for_layers(module), LaneOptions(layer_kernels={"ptq": {"x": "fp"}}))


def test_gradients_are_integers_unless_the_recipe_says_otherwise_or_the_range_is_static() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    grids = {str(i): LayerScheme.parse(text) for i, text in enumerate(("w8a8", "w4a8s", "w4a8"))}
    assert LaneKernels.of(module, grids).backward_of_values == {"1"}
    assert LaneKernels.of(module, grids, LaneOptions(qat_backward="bf16")).backward_of_values == {"0", "1", "2"}
