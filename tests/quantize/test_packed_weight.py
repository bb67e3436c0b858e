"""Weights packed and unpacked in one pass: the bytes and bits of rounding, packing, unpacking and scaling."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fedhq_lightning.quantize import LayerScheme, dequantize_weight, pack, quantize_weight, unpack
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.quantize.native.build import levels_of_this_processor
from fedhq_lightning.quantize.native.lanes import kernels_of_torch, native, native_level
from fedhq_lightning.quantize.packed_weight import PackedWeight, pack_weight

SHAPES = [(1, 1), (3, 5), (7, 9), (16, 64), (33, 2049), (6, 2, 3, 3), (2, 4100)]


@pytest.fixture(params=[*levels_of_this_processor(), "torch"])
def _level(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each level that this processor has, and the code without them."""
    best = native_level()
    if request.param == "torch":
        with kernels_of_torch():
            yield
        return
    if not has_compiler() or best is None:
        pytest.skip("no kernels")
    torch.ops.fedhq.use_level(request.param)
    yield
    torch.ops.fedhq.use_level(best)


def weights(*shape: int) -> Tensor:
    values = torch.randn(shape) ** 3
    values[0] = 0
    values[-1] *= 1e-30
    return values


def packed(values: Tensor, grid: LayerScheme, base: Tensor | None = None) -> PackedWeight:
    return PackedWeight(*pack_weight(values, grid, base), grid.weight_bits, values.shape, values.dtype)


def by_hand(values: Tensor, grid: LayerScheme) -> tuple[Tensor, Tensor, Tensor]:
    with kernels_of_torch():
        integers, scales = quantize_weight(values, grid)
        sent = pack(integers, grid.weight_bits)
        received = unpack(sent, grid.weight_bits, values.numel()).reshape(values.shape[0], -1)
        return sent, scales, dequantize_weight(received, scales, values.shape)


@pytest.mark.usefixtures("_level")
class TestBits:
    @pytest.mark.parametrize("bits", [2, 3, 8])
    @pytest.mark.parametrize("group_size", [None, 6])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_a_part_is_as_in_the_whole(self, bits: int, group_size: int | None, dtype: torch.dtype) -> None:
        values = weights(5, 18).to(dtype)
        whole = packed(values, LayerScheme(bits, None, group_size))
        for begin, end in ((0, 90), (0, 5), (8, 8), (16, 41), (88, 90)):
            part = whole.part(begin, end)
            assert part.dtype == dtype
            assert torch.equal(part, whole.decoded().reshape(-1)[begin:end])

    @pytest.mark.parametrize("bits", range(2, 9))
    @pytest.mark.parametrize("shape", SHAPES)
    def test_both_ways(self, shape: tuple[int, ...], bits: int) -> None:
        grid, values = LayerScheme(bits, None, None), weights(*shape)
        sent, scales, received = by_hand(values, grid)
        got = packed(values, grid)
        assert torch.equal(got.packed, sent)
        assert torch.equal(got.scales, scales)
        assert torch.equal(got.decoded(), received)

    @pytest.mark.parametrize("bits", [2, 3, 8])
    @pytest.mark.parametrize("group", [2, 3, 8])
    def test_groups(self, bits: int, group: int) -> None:
        grid, values = LayerScheme(bits, None, group), weights(5, 4, 6)
        sent, scales, received = by_hand(values, grid)
        got = packed(values, grid)
        assert scales.shape == got.scales.shape == (5, 24 // group)
        assert torch.equal(got.packed, sent)
        assert torch.equal(got.decoded(), received)

    @pytest.mark.parametrize("bits", [3, 8])
    def test_a_difference(self, bits: int) -> None:
        grid, values, base = LayerScheme(bits, None, None), weights(9, 33), weights(9, 33).t().reshape(33, 9).t()
        sent, scales, _ = by_hand(values - base, grid)
        got = packed(values, grid, base)
        assert torch.equal(got.packed, sent)
        assert torch.equal(got.scales, scales)

    @pytest.mark.parametrize("bits", range(2, 9))
    def test_any_part(self, bits: int) -> None:
        got = packed(weights(7, 613), LayerScheme(bits, None, None))
        whole = got.decoded().view(-1)
        for begin, size in itertools.product((0, 8, 616, 4096), (1, 7, 64, 195)):
            part = torch.full((size,), torch.nan)
            is_read = got.read(begin, part)
            assert is_read is (native(part) is not None)
            assert torch.equal(part, whole[begin : begin + size]) is is_read

    def test_other_dtypes_and_strides(self) -> None:
        grid = LayerScheme(4, None, None)
        for values in (weights(6, 8).bfloat16(), weights(6, 8).double(), weights(8, 6).t()):
            sent, _, received = by_hand(values.float(), grid)
            got = packed(values, grid)
            assert torch.equal(got.packed, sent)
            assert torch.equal(got.decoded(), received.to(values.dtype))

    def test_a_parameter_keeps_its_gradient_and_its_values(self) -> None:
        values = torch.nn.Parameter(weights(4, 6))
        before = values.detach().clone()
        got = packed(values, LayerScheme(4, None, None), torch.ones(4, 6))
        assert torch.equal(values, before)
        assert not got.decoded().requires_grad

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("bits", [2, 8])
    def test_what_is_not_finite_shows(self, value: float, bits: int) -> None:
        values, grid = weights(4, 6), LayerScheme(bits, None, 3)
        assert packed(values, grid).is_finite()
        values[2, 1] = value
        assert not packed(values, grid).is_finite()
        assert not packed(values, grid).decoded().isfinite().all()

    def test_a_finite_scale_may_leave_the_range(self) -> None:
        grid = LayerScheme(8, None, None)
        largest = torch.finfo(torch.float32).max
        assert packed(torch.tensor([[largest / 2, -1.0]]), grid).is_finite()
        integer, scale = torch.tensor([127], dtype=torch.uint8), torch.tensor([[largest]])
        beyond = PackedWeight(integer, scale, 8, (1, 1), torch.float32)
        assert not beyond.is_finite()

    def test_a_group_that_does_not_divide_is_refused(self) -> None:
        with pytest.raises(ValueError, match="a group of 5 does not divide 6 inputs"):
            packed(weights(4, 6), LayerScheme(4, None, 5))

    def test_without_rows(self) -> None:
        nothing = PackedWeight(torch.empty(0, dtype=torch.uint8), torch.empty(0, 1), 4, (0, 3), torch.float32)
        assert nothing.is_finite()
        assert nothing.decoded().shape == (0, 3)
