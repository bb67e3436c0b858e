import pytest
import torch
from torch import Tensor
from torchao.quantization.qat.utils import _fake_quantize_per_channel_group
from torchao.quantization.quant_primitives import MappingType
from torchao.quantization.utils import get_group_qparams_symmetric

from fedhq_lightning.quantize import grid
from fedhq_lightning.quantize.scheme import LayerScheme
from fedhq_lightning.quantize.torchao_quietly import IntxFakeQuantizeConfig, IntxFakeQuantizer, PerToken

SCALES = [1.0, 1e-6, 1e-30, 1e20]


def values(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    # Heavy tails, exact zeros and one-sided rows, which is where ranges and rounding differ.
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) ** 3 * scale
    x[torch.rand(shape, generator=generator) < 0.1] = 0
    x[0] = x[0].abs()
    x[1] = -x[1].abs()
    x[2] = 0
    return x


def torchao_scale(weight: Tensor, scheme: LayerScheme, mapping_type: MappingType) -> Tensor:
    flat = weight.flatten(1)
    group_size = scheme.group_size or flat.shape[1]
    scale, _ = get_group_qparams_symmetric(flat, scheme.weight_bits, group_size, mapping_type=mapping_type)
    return scale


def torchao_rounded(weight: Tensor, scheme: LayerScheme, scale: Tensor) -> Tensor:
    flat = weight.flatten(1)
    group_size = scheme.group_size or flat.shape[1]
    lowest, highest = grid.integer_range(scheme.weight_bits)
    rounded = _fake_quantize_per_channel_group(flat, scale, torch.zeros_like(scale), lowest, highest, group_size)
    return rounded.view(weight.shape)


def group_errors(rounded: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return (rounded - weight).double().view(*scale.shape, -1).square().sum(2)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [None, 12])
def test_rounding_twice_is_rounding_once(bits: int, group_size: int | None) -> None:
    """Or the extremes of a model that travels rounded would grow in every round of a run."""
    scheme = LayerScheme(bits, None, group_size)
    weight = values(16, 4, 3, 3)
    first = grid.quantize_weight(weight, scheme)
    rounded = grid.round_to_grid(weight, scheme)
    for _ in range(20):
        integers, scales = grid.quantize_weight(rounded, scheme)
        rounded = grid.round_to_grid(rounded, scheme)
    assert torch.equal(integers, first[0])
    torch.testing.assert_close(scales, first[1], rtol=1e-5, atol=0)
    assert rounded.abs().max() <= weight.abs().max() * (1 + 1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [None, 3, 12])
@pytest.mark.parametrize("scale", SCALES)
def test_weights_are_bitwise_torchaos_at_the_same_scales(bits: int, group_size: int | None, scale: float) -> None:
    weight, scheme = values(16, 4, 3, 3, scale=scale), LayerScheme(bits, None, group_size)
    integers, scales = grid.quantize_weight(weight, scheme)
    assert torch.equal(grid.round_to_grid(weight, scheme), torchao_rounded(weight, scheme, scales))
    assert integers.dtype == torch.int8
    assert integers.shape == (16, 36)
    assert scales.shape == (16, 36 // (group_size or 36))
    lowest, highest = grid.integer_range(bits)
    assert integers.min() >= lowest
    assert integers.max() <= highest


@pytest.mark.parametrize("bits", range(4, 9))
@pytest.mark.parametrize("group_size", [None, 12])
def test_scales_above_three_bits_are_torchaos_without_clipping(bits: int, group_size: int | None) -> None:
    weight, scheme = values(16, 4, 3, 3), LayerScheme(bits, None, group_size)
    expected = torchao_scale(weight, scheme, MappingType.SYMMETRIC_NO_CLIPPING_ERR)
    assert torch.equal(grid.quantize_weight(weight, scheme)[1], expected)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("group_size", [None, 12])
def test_scales_up_to_three_bits_hardly_ever_err_more_than_without_clipping(bits: int, group_size: int | None) -> None:
    """The search measures each error to a sixteenth of a step, so it may miss the better of two by about as much."""
    weight = torch.cat([values(16, 48), torch.randn(16, 48, generator=torch.Generator().manual_seed(0))])
    scheme = LayerScheme(bits, None, group_size)
    widest = torchao_scale(weight, scheme, MappingType.SYMMETRIC_NO_CLIPPING_ERR)
    scales = grid.quantize_weight(weight, scheme)[1]
    ours = group_errors(grid.round_to_grid(weight, scheme), weight, scales)
    theirs = group_errors(torchao_rounded(weight, scheme, widest), weight, widest)
    size = group_size or weight.shape[1]
    # Two errors, each off by at most 1/32 of a step a weight: |sum(e)^2 - sum(e')^2| <= (2 |e| + 1/32) / 32 * size.
    tolerance = 2 * (2 * 0.5 + 1 / 32) / 32 * size * widest.double() ** 2
    assert (ours <= theirs + tolerance).all()
    assert (ours < theirs * 0.9).any()
    assert ours.sum() < theirs.sum()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scale", SCALES)
def test_activations_are_bitwise_torchaos(bits: int, scale: float) -> None:
    x = values(16, 50, scale=scale)
    dtype = getattr(torch, f"int{bits}")
    quantizer = IntxFakeQuantizer(IntxFakeQuantizeConfig(dtype, PerToken(), is_symmetric=False))
    expected = quantizer(x)
    integers, scales, zero_points = grid.quantize_activation(x, bits, (1,))
    assert torch.equal((integers.float() - zero_points) * scales, expected)
    assert torch.equal(scales.flatten(), quantizer.scale.flatten())
    assert torch.equal(zero_points.flatten(), quantizer.zero_point.flatten())


def test_activation_range_is_shared_over_the_given_dimensions() -> None:
    x = values(4, 3, 5, 6)
    integers, scale, zero_point = grid.quantize_activation(x, 8, (1, 2, 3))
    flat_integers, flat_scale, flat_zero_point = grid.quantize_activation(x.flatten(1), 8, (1,))
    assert scale.shape == zero_point.shape == (4, 1, 1, 1)
    assert torch.equal(integers.flatten(1), flat_integers)
    assert torch.equal(scale.flatten(), flat_scale.flatten())
    assert torch.equal(zero_point.flatten(), flat_zero_point.flatten())


def test_zero_is_exact_in_every_activation_range() -> None:
    x = torch.linspace(3, 5, 20).view(2, 10)
    x[0, 3] = 0
    integers, scale, zero_point = grid.quantize_activation(x, 4, (1,))
    assert ((integers - zero_point) * scale)[0, 3] == 0
    assert ((integers - zero_point) * scale).max() <= 5


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 2)])
def test_zeros_stay_zeros(shape: tuple[int, ...]) -> None:
    zeros = torch.zeros(shape)
    assert torch.equal(grid.round_to_grid(zeros, LayerScheme(4)), zeros)
    integers, scale, zero_point = grid.quantize_activation(zeros, 8, (1,))
    assert torch.equal((integers - zero_point) * scale, zeros)


def test_rounding_twice_changes_the_second_time_no_integer() -> None:
    # The scale shrinks when the largest weight was clamped, so the grid itself may move; per group it is one step.
    weight, scheme = values(8, 32), LayerScheme(8)
    rounded = grid.round_to_grid(weight, scheme)
    assert (rounded - weight).abs().amax() <= 0.5001 * grid.quantize_weight(weight, scheme)[1].max()


def test_not_a_number_stays_not_a_number() -> None:
    weight = torch.ones(2, 4)
    weight[0, 1] = float("nan")
    rounded = grid.round_to_grid(weight, LayerScheme(4))
    assert rounded[0].isnan().all()
    assert not rounded[1].isnan().any()


def test_low_precision_weights_are_computed_in_fp32() -> None:
    weight = values(8, 32).bfloat16()
    assert torch.equal(grid.round_to_grid(weight, LayerScheme(4)), grid.round_to_grid(weight.float(), LayerScheme(4)))


def test_group_must_divide() -> None:
    with pytest.raises(ValueError, match="a group of 5 does not divide 12 inputs"):
        grid.quantize_weight(torch.ones(2, 12), LayerScheme(4, None, 5))


def test_strided_weights() -> None:
    weight = values(12, 8, 3, 3).to(memory_format=torch.channels_last)
    scheme = LayerScheme(4, None, 9)
    assert torch.equal(grid.round_to_grid(weight, scheme), grid.round_to_grid(weight.contiguous(), scheme))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [30, 3000])
def test_what_is_not_finite_fits_its_bits_and_shows_in_the_scale(bad: float, size: int) -> None:
    """Also in compiled kernels, where a cast of not-a-number to int8 has another outcome than in eager mode."""
    weight = torch.randn(4, size)
    weight[1, 7] = bad
    integers, scale = grid.quantize_weight(weight, LayerScheme(2))
    assert integers.min() >= -2
    assert integers.max() <= 1
    assert not scale[1].isfinite().any()
    assert scale[[0, 2, 3]].isfinite().all()
    assert not grid.round_to_grid(weight, LayerScheme(2))[1].isfinite().all()
