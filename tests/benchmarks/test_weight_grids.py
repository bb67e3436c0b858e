"""Patched grids: what they round to, in eager and compiled kernels, and that nothing of them stays."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.quant_primitives import MappingType
from torchao.quantization.utils import get_group_qparams_symmetric
from weight_grids import WEIGHT_GRIDS, weight_grid

from fedhq_lightning.quantize import LayerScheme, QuantScheme, convert, prepare, quantize_weight, round_to_grid

SHAPES = [(12, 40), (64, 100)]
"""The second is large enough for a compiled kernel."""


def values(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def squared_error(weight: Tensor, bits: int) -> float:
    return float((round_to_grid(weight, LayerScheme(bits)) - weight).square().sum())


@pytest.mark.parametrize(("shape", "bits"), [(SHAPES[0], 2), (SHAPES[0], 3), (SHAPES[0], 8), (SHAPES[1], 4)])
def test_max_scale_is_torchaos_default(shape: tuple[int, ...], bits: int) -> None:
    weight = values(shape)
    expected, _ = get_group_qparams_symmetric(weight, bits, shape[1], mapping_type=MappingType.SYMMETRIC)
    with weight_grid("max scale"):
        integers, scale = quantize_weight(weight, LayerScheme(bits))
    torch.testing.assert_close(scale, expected, rtol=1e-6, atol=0)
    assert integers.min() == -(2 ** (bits - 1))


@pytest.mark.parametrize(("shape", "bits"), [(SHAPES[0], 2), (SHAPES[0], 3), (SHAPES[0], 4), (SHAPES[1], 2)])
def test_search_errs_less_than_no_search_and_shipped_is_one_of_them(shape: tuple[int, ...], bits: int) -> None:
    weight = values(shape)
    errors, rounded = {}, {}
    for name in WEIGHT_GRIDS:
        with weight_grid(name):
            errors[name] = squared_error(weight, bits)
            rounded[name] = round_to_grid(weight, LayerScheme(bits))
    assert errors["search"] < errors["no search"]
    assert torch.equal(rounded["shipped"], rounded["search" if bits <= 4 else "no search"])
    assert not torch.equal(rounded["shipped"], rounded["max scale"])


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_stays_patched(shape: tuple[int, ...]) -> None:
    weight = values(shape)
    before = round_to_grid(weight, LayerScheme(2))
    for name in WEIGHT_GRIDS:
        with weight_grid(name):
            round_to_grid(weight, LayerScheme(2))
        assert torch.equal(round_to_grid(weight, LayerScheme(2)), before)
    with pytest.raises(RuntimeError, match="inside"), weight_grid("max scale"):
        raise RuntimeError("inside")
    assert torch.equal(round_to_grid(weight, LayerScheme(2)), before)


@pytest.mark.parametrize("size", [40, 100])
def test_lanes_and_deployed_models_are_on_the_patched_grid(size: int) -> None:
    layer, scheme = nn.Linear(size, 64), QuantScheme("w2", edge_bits=None)
    x = torch.eye(size)
    with weight_grid("max scale"):
        expected = round_to_grid(layer.weight, LayerScheme(2)).t() + layer.bias
        trained = prepare(copy.deepcopy(layer), "qat", scheme)(x)
        deployed = convert(layer, scheme)(x)
    torch.testing.assert_close(trained, expected)
    torch.testing.assert_close(deployed, expected.detach())


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed are shipped, max scale"), weight_grid("min scale"):
        pass
