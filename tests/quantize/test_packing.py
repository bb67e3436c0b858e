import pytest
import torch

from fedhq_lightning.quantize import packing
from fedhq_lightning.quantize.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 15, 16, 17, 1001])
def test_round_trip(bits: int, count: int) -> None:
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count,)).to(torch.int8)
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((count * bits + 7) // 8,)
    assert packed.numel() == packed_bytes(count, bits)
    assert torch.equal(unpack(packed, bits, count), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_layout_is_the_documented_one(bits: int) -> None:
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (37,)).to(torch.int8)
    # The layout spelled out with Python's big integers: this is what files on disk rely on.
    number = sum((int(value) & (2**bits - 1)) << (i * bits) for i, value in enumerate(values))
    assert bytes(pack(values, bits).tolist()) == number.to_bytes(packed_bytes(37, bits), "little")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [8 * 3 * 4, 8 * 3 * 4 + 5])
def test_chunks_are_joined_seamlessly(bits: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count,)).to(torch.int8)
    whole = pack(values, bits)
    monkeypatch.setattr(packing, "_CHUNK", 3)
    assert torch.equal(pack(values, bits), whole)
    assert torch.equal(unpack(whole, bits, count), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_neighbourhood_of_extremes(bits: int) -> None:
    """Sign bits beside zeros, in every one of the eight places."""
    ends = torch.tensor([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0, -1], dtype=torch.int8)
    values = torch.cartesian_prod(*[ends] * 4).repeat(1, 2).reshape(-1)
    shifted = values.roll(1)
    for each in (values, shifted):
        assert torch.equal(unpack(pack(each, bits), bits, each.numel()), each)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bytes_at_any_address(bits: int) -> None:
    """A payload's tensors start wherever the file has them."""
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (43,)).to(torch.int8)
    packed = pack(values[3:], bits)
    moved = torch.cat([torch.zeros(3, dtype=torch.uint8), packed])[3:]
    assert torch.equal(unpack(moved, bits, 40), values[3:])


@pytest.mark.parametrize("bits", range(1, 9))
def test_neither_way_returns_the_memory_it_was_given(bits: int) -> None:
    values = torch.full((16,), -1, dtype=torch.int8)
    packed = pack(values, bits)
    unpacked = unpack(packed, bits, 16)
    values.zero_()
    assert bool((unpack(packed, bits, 16) == -1).all())
    packed.zero_()
    assert bool((unpacked == -1).all())


def test_any_shape_and_stride() -> None:
    values = torch.randint(-4, 4, (3, 5, 7)).to(torch.int8).transpose(0, 2)
    assert torch.equal(unpack(pack(values, 3), 3, values.numel()).view(values.shape), values)


def test_packed_bytes_own_their_memory() -> None:
    assert pack(torch.zeros(3, dtype=torch.int8), 2).untyped_storage().nbytes() == 1


@pytest.mark.parametrize(("value", "bits"), [(1, 1), (-2, 1), (8, 4), (-9, 4), (64, 7)])
def test_values_out_of_range(value: int, bits: int) -> None:
    with pytest.raises(ValueError, match=f"{bits} bits hold"):
        pack(torch.tensor([0, value], dtype=torch.int8), bits)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ValueError, match=r"bits must be 1\.\.8"):
        pack(torch.zeros(1, dtype=torch.int8), bits)
    with pytest.raises(ValueError, match=r"bits must be 1\.\.8"):
        unpack(torch.zeros(1, dtype=torch.uint8), bits, 1)


def test_wrong_types_and_lengths() -> None:
    with pytest.raises(ValueError, match=r"int8 values, not torch\.int32"):
        pack(torch.zeros(1, dtype=torch.int32), 4)
    with pytest.raises(ValueError, match="flat uint8 bytes"):
        unpack(torch.zeros(1, dtype=torch.int8), 4, 1)
    for num_bytes, count in ((2, 5), (3, 4), (0, -1)):
        with pytest.raises(ValueError, match=f"{num_bytes} bytes do not hold {count} values of 4 bits"):
            unpack(torch.zeros(num_bytes, dtype=torch.uint8), 4, count)
