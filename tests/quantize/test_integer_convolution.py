import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedhq_lightning.quantize import integer_convolution
from fedhq_lightning.quantize.integer_convolution import (
    ZERO,
    Geometry,
    exact_convolution,
    has_convolution_kernel,
    scaled_convolution,
    signed,
)

GEOMETRIES = [
    Geometry(stride, dilation, groups)
    for stride, dilation, groups in itertools.product([(1, 1), (2, 3)], [(1, 1), (2, 1)], [1, 2, 4])
]


@pytest.fixture(params=["onednn", "patches"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "patches":
        monkeypatch.setattr(integer_convolution, "has_convolution_kernel", lambda *_: False)
    elif not has_convolution_kernel(torch.device("cpu")):
        pytest.skip("this CPU has no exact int8 convolution")
    return request.param


def image(batch: int = 3) -> Tensor:
    x = torch.randint(0, 256, (batch, 11, 9, 8), dtype=torch.uint8)
    x[0] = 255  # where sums of two products overflow 16 bits
    return x


def filters(groups: int, kernel: tuple[int, int], bits: int = 8) -> Tensor:
    half = 2 ** (bits - 1)
    weight = torch.randint(-half, half, (12, 8 // groups, *kernel), dtype=torch.int8)
    weight[0], weight[1] = half - 1, -half
    return weight


def reference(x: Tensor, zero: int, weight: Tensor, padding: tuple[int, int], geometry: Geometry) -> Tensor:
    """(batch, out, height, width) in fp64, exact."""
    wide = (x.double() - zero).movedim(-1, 1)
    return F.conv2d(wide, weight.double(), None, geometry.stride, padding, geometry.dilation, geometry.groups)


def test_bytes_stand_for_signed_integers() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(signed(x), (x.int() - ZERO).to(torch.int8))


@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("zero", [0, 5, 128])
@pytest.mark.parametrize("kernel", [(3, 2), (1, 1)])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_scaled_is_the_convolution(
    geometry: Geometry, kernel: tuple[int, int], zero: int, padding: tuple[int, int]
) -> None:
    x, weight = image(), filters(geometry.groups, kernel)
    exact = reference(x, zero, weight, padding, geometry)
    # Powers of two and whole biases: no rounding anywhere, so equal to the last bit.
    scale, bias = 2.0 ** torch.randint(-3, 4, (12,)), torch.randint(-9, 9, (12,)).float()
    with_bias = scaled_convolution(x, zero, weight, scale, bias, padding, geometry)
    assert torch.equal(with_bias.double(), exact * scale.view(-1, 1, 1) + bias.view(-1, 1, 1))
    assert torch.equal(scaled_convolution(x, zero, weight, scale, None, padding, geometry).double(),
                       exact * scale.view(-1, 1, 1))  # fmt: skip
    assert with_bias.dtype == torch.float32
    assert with_bias.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_exact_is_the_convolution(geometry: Geometry, bits: int) -> None:
    x, weight = image(), filters(geometry.groups, (3, 3), bits)
    output = exact_convolution(x, weight, bits, geometry)
    assert torch.equal(output.double(), reference(x, ZERO, weight, (0, 0), geometry).movedim(1, -1))


def test_exact_where_fp32_would_not_be() -> None:
    """1,024 times 9 products of 127 * 128 do not fit the 24 bits of fp32; odd sums would be rounded."""
    x = torch.full((2, 4, 4, 1024), 255, dtype=torch.uint8)
    weight = torch.full((4, 1024, 3, 3), -127, dtype=torch.int8)
    weight[1, 0, 0, 0] = 0
    expected = reference(x, ZERO, weight, (0, 0), Geometry((1, 1)))
    assert expected.abs().max() > 2**24
    assert torch.equal(exact_convolution(x, weight, 8, Geometry((1, 1))).double(), expected.movedim(1, -1))


@pytest.mark.parametrize("weight_value", [-128, 127])
def test_two_of_the_largest_products_do_not_overflow(weight_value: int) -> None:
    """Two of 255 * 128 leave 16 bits, in which oneDNN adds pairs on x86 CPUs without VNNI."""
    x = torch.full((2, 5, 6, 8), 255, dtype=torch.uint8)
    weight = torch.full((16, 8, 3, 3), weight_value, dtype=torch.int8)
    expected = reference(x, ZERO, weight, (0, 0), Geometry((1, 1))).movedim(1, -1)
    assert torch.equal(exact_convolution(x, weight, 8, Geometry((1, 1))).double(), expected)
    output = scaled_convolution(x, 0, weight, torch.ones(16), None, (0, 0), Geometry((1, 1)))
    assert torch.equal(output.double(), reference(x, 0, weight, (0, 0), Geometry((1, 1))))


def test_one_call_leaves_the_next_as_it_is() -> None:
    """oneDNN packs the weight for one zero point and caches kernels: neither may stick."""
    weight, x, scale, geometry = filters(1, (3, 3)), image(), torch.ones(12), Geometry((1, 1))
    for zero, padding in [(0, (1, 1)), (128, (1, 1)), (0, (0, 0)), (128, (0, 0)), (0, (1, 1)), (128, (1, 1))]:
        output = scaled_convolution(x, zero, weight, scale, None, padding, geometry)
        assert torch.equal(output.double(), reference(x, zero, weight, padding, geometry))
        other = scaled_convolution(x[:1], zero, weight.flip(0), scale, None, padding, geometry)
        assert torch.equal(other.double(), reference(x[:1], zero, weight.flip(0), padding, geometry))


def test_strided_weights() -> None:
    x, weight = image(), filters(1, (3, 3)).to(memory_format=torch.channels_last)
    output = scaled_convolution(x, 7, weight, torch.ones(12), None, (1, 1), Geometry((1, 1)))
    assert torch.equal(output.double(), reference(x, 7, weight, (1, 1), Geometry((1, 1))))
