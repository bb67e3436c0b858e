"""The passes of an exact sum: kernels of every level give the bits of numpy."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fedhq_lightning.federated.chunk_loops import SHIFT_BITS, Scratch
from fedhq_lightning.federated.chunk_sum import ChunkSum
from fedhq_lightning.quantize.native.build import levels_of_this_processor
from fedhq_lightning.quantize.native.lanes import kernels_of_torch, native_level

LIMIT = 0x50000000  # 2**33
SIZES = [1, 7, 2048, 5000]


@pytest.fixture(params=levels_of_this_processor())
def _level(request: pytest.FixtureRequest) -> Iterator[None]:
    best = native_level()
    if best is None:
        pytest.skip("no kernels")
    torch.ops.fedhq.use_level(request.param)
    yield
    torch.ops.fedhq.use_level(best)


def values(size: int) -> Tensor:
    """All magnitudes that there are, zeros and what is no number among them."""
    given = torch.randint(-(2**31), 2**31, (size,)).to(torch.int32).view(torch.float32).clone()
    given[::3] = torch.randn(len(given[::3])) * 0.05
    given[::5] = 0.0
    return given


@pytest.mark.usefixtures("_level")
class TestBits:
    @pytest.mark.parametrize("size", SIZES)
    def test_magnitudes(self, size: int) -> None:
        scratch = Scratch()
        for given in (values(size), torch.zeros(size), -torch.ones(size), torch.full((size,), torch.nan)):
            found = scratch.magnitudes(given)
            with kernels_of_torch():
                assert scratch.magnitudes(given) == found

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(("lowest", "highest"), [(1, LIMIT), (0x35000000, 0x3F000000), (0x3D000000, 0x3D000001)])
    def test_adding(self, size: int, lowest: int, highest: int) -> None:
        given, scratch = values(size), Scratch()
        units = torch.randint(-(2**62), 2**62, (size,)).numpy()
        expected, factor = units.copy(), 50 * 2.0**40
        for _ in range(3):
            largest, places = scratch.add(given, factor, lowest, highest, LIMIT, units)
            with kernels_of_torch():
                assert scratch.magnitudes(given)[0] == largest
                other, other_places = scratch.add(given, factor, lowest, highest, LIMIT, expected)
            assert largest == other
            assert places.tolist() == other_places.tolist()
            assert np.array_equal(units, expected)

    @pytest.mark.parametrize("scale", [1e-30, 0.05, 1e4, 1e9])
    def test_means(self, scale: float) -> None:
        """Whether all values fit, few do not, or many; and where the sum is of few digits."""
        scratch, sums = Scratch(), ([ChunkSum(5000), ChunkSum(5000)])
        for step in range(4):
            given = torch.randn(5000) * scale
            given[: 10**step] *= 1e-9
            given[-1] = 0.0
            assert sums[0].add(given, 50 + step, scratch)
            with kernels_of_torch():
                assert sums[1].add(given, 50 + step, scratch)
                expected = sums[1].mean(206, scratch).clone()
            assert sums[0].apart == sums[1].apart
            assert torch.equal(sums[0].mean(206, scratch), expected)


def test_a_product_is_added_in_units() -> None:
    units = np.zeros(2, np.int64)
    Scratch().add(torch.tensor([3.0, -0.5]), 50 * 2.0, 1, LIMIT, LIMIT, units)
    assert (units - SHIFT_BITS).tolist() == [300, -50]
