import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fedhq_lightning.deploy.export import export_program
from fedhq_lightning.deploy.program_layers import become_program_layers
from fedhq_lightning.quantize.activation_ranges import attach_ranges
from fedhq_lightning.quantize.conversion import convert
from fedhq_lightning.quantize.scheme import QuantScheme
from fedhq_lightning.support.views import RANGE

LAYERS = {
    "small": (nn.Linear(7, 5), (7,)),
    "one input": (nn.Linear(1, 40_000), (1,)),
    "large": (nn.Linear(300, 120), (300,)),
    "large in three dimensions": (nn.Linear(300, 120), (3, 300)),
    "image": (nn.Conv2d(3, 8, 3, padding=1), (3, 9, 7)),
    "signal": (nn.Conv1d(3, 8, 2, stride=2, padding=1, dilation=2), (3, 12)),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), (8, 6, 6)),
    "even kernel": (nn.Conv2d(3, 8, 2, padding="same"), (3, 6, 6)),
    "circular": (nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), (3, 6, 6)),
    "long sums": (nn.Conv2d(600, 4, 3), (600, 3, 4)),
}
SCHEMES = ["w8a8", "w4a8", "w2a3", "w4a8s"]


def in_program_form(converted: nn.Module) -> nn.Module:
    program = copy.deepcopy(converted)
    become_program_layers(program)
    return program


def converted(layer: nn.Module, scheme: str) -> nn.Module:
    module = nn.Sequential(copy.deepcopy(layer)).eval()
    parsed = QuantScheme(scheme, edge_bits=None)
    for name in attach_ranges(module, parsed):
        assert name.endswith(RANGE)
        module.get_buffer(name).copy_(torch.tensor([-1.5, 2.25]))
    return convert(module, parsed)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_the_same_bits(layer: nn.Module, shape: tuple[int, ...], scheme: str) -> None:
    module = converted(layer, scheme)
    program = in_program_form(module)
    generator = torch.Generator().manual_seed(0)
    for count, factor in ((1, 1.0), (5, 3.0), (64, 1e-39), (2, 0.0)):
        x = torch.randn(count, *shape, generator=generator) * factor
        for batch in (x, x.abs(), -x.abs(), x.double()):
            torch.testing.assert_close(program(batch), module(batch), atol=0, rtol=0)


def test_the_same_bits_channels_last_and_of_one_sample() -> None:
    layer, x = nn.Conv2d(3, 8, 3, padding=1), torch.randn(4, 3, 9, 7)
    module = converted(layer, "w8a8")
    program = in_program_form(module)
    for batch in (x.contiguous(memory_format=torch.channels_last), x[0], x.transpose(2, 3)):
        output, expected = program(batch), module(batch)
        assert torch.equal(output, expected)
        assert output.stride() == expected.stride()


def test_not_a_number_stays_so() -> None:
    module = converted(nn.Linear(7, 5), "w4a8")
    x = torch.randn(3, 7)
    x[1, 2] = float("nan")
    output = in_program_form(module)(x)
    assert torch.equal(output.isnan(), module(x).isnan())
    assert output[1].isnan().all()


def test_the_weight_can_be_read() -> None:
    for layer, _ in LAYERS.values():
        module = converted(layer, "w4a8")
        assert torch.equal(in_program_form(module)[0].weight, module[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("scheme", ["w4", "w4a8-g2"])
def test_other_layers_stay_as_they_are(scheme: str) -> None:
    module = convert(nn.Sequential(nn.Linear(8, 6)), QuantScheme(scheme, edge_bits=None))
    assert type(in_program_form(module)[0]) is type(module[0])  # type: ignore[index]


def test_a_program_has_few_operations(tmp_path: Path) -> None:
    """What depends on weights alone is not computed in every forward, but for casts."""
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 120))
    module = convert(layers.eval(), QuantScheme("w4a8", edge_bits=None))
    program = export_program(module, (torch.randn(2, 1, 12, 12),), tmp_path / "model.pt2")
    graph = program.get_submodule("program").graph
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert not any("assert" in name for name in names)
    assert names.count("aten._int_mm.default") == 1
    assert names.count("aten.sum.dim_IntList") == 0
    assert len(names) <= 56


def test_the_same_bits_without_onednn(tmp_path: Path) -> None:
    """There torch convolves many samples in NNPACK, by transforms that round."""
    torch.manual_seed(0)
    module, x = converted(nn.Conv2d(3, 8, 3, padding=1), "w4a8"), torch.randn(32, 3, 16, 16)
    expected = module(x)
    with torch.backends.nnpack.flags(enabled=True), torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert torch.equal(module(x), expected)
        program = export_program(module, (x,), tmp_path / "model.pt2")
        assert torch.equal(program(x), expected)
        assert torch._C._get_nnpack_enabled()


def test_inputs_stay_as_they_are() -> None:
    """Rounding in place must not touch what the caller gave."""
    module = converted(nn.Linear(7, 5), "w4a8")
    x = torch.randn(3, 7)
    before = x.clone()
    in_program_form(module)(x)
    assert torch.equal(x, before)
