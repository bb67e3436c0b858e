"""True 1 to 8-bit packing of signed integers.

The layout, which payloads and packed models rely on: two's complement of `bits` bits each, the first value in the
lowest bits, bytes in ascending order, unused bits of the last byte zero. Eight values make exactly `bits` bytes, so
both ways treat eight int8 values as one 64-bit word (little-endian hosts, the only ones PyTorch ships for) and close,
or open, the gaps between them in three rounds: between 2 values, between pairs, between fours.
"""

import torch
from torch import Tensor

_BLOCK = 8
_CHUNK = 2**15
"""Blocks at a time: 256 KiB of values and the few temporaries of one chunk stay in a core's cache."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take."""
    return -(-count * bits // 8)


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack signed integers.

    Args:
        values: int8, any shape, every value within `bits` bits signed (-1 and 0 for one bit).
        bits: 1..8.

    Returns:
        uint8 (ceil(count * bits / 8),), on the values' device.

    Raises:
        ValueError: Bits outside 1..8, another dtype, or a value that `bits` bits cannot hold.
    """
    _check_bits(bits)
    if values.dtype != torch.int8:
        raise ValueError(f"pack takes int8 values, not {values.dtype}")
    flat = values.reshape(-1)
    count = flat.numel()
    if count == 0:
        return torch.empty(0, dtype=torch.uint8, device=values.device)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    smallest, largest = (int(bound) for bound in torch.aminmax(flat))
    if smallest < lowest or largest > highest:
        raise ValueError(f"values reach from {smallest} to {largest}; {bits} bits hold {lowest}..{highest}")
    if bits == 8:
        return flat.view(torch.uint8).clone()
    packed = torch.empty(-(-count // _BLOCK), bits, dtype=torch.uint8, device=values.device)
    for rows, chunk in zip(torch.split(packed, _CHUNK), torch.split(flat, _CHUNK * _BLOCK), strict=True):
        words = torch.nn.functional.pad(chunk, (0, -chunk.numel() % _BLOCK)).view(torch.int64)
        words &= _low_bits(bits, 8)
        for low, high, shift in _rounds(bits):
            words = (words & low) | (words >> shift & high)
        rows.copy_(words.view(torch.uint8).view(-1, 8)[:, :bits])
    size = packed_bytes(count, bits)
    return packed.view(-1) if packed.numel() == size else packed.view(-1)[:size].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack`.

    Args:
        packed: uint8 (ceil(count * bits / 8),).
        bits: 1..8.
        count: Values that were packed.

    Returns:
        int8 (count,), on the device of `packed`.

    Raises:
        ValueError: Bits outside 1..8, a negative count, another dtype, or a length that does not fit.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise ValueError(f"unpack takes flat uint8 bytes, not {packed.dtype} of shape {tuple(packed.shape)}")
    if count < 0 or packed.numel() != packed_bytes(count, bits):
        raise ValueError(f"{packed.numel()} bytes do not hold {count} values of {bits} bits")
    if bits == 8:
        return packed.view(torch.int8).clone()
    if count == 0:
        return torch.empty(0, dtype=torch.int8, device=packed.device)
    num_blocks = -(-count // _BLOCK)
    padded = torch.nn.functional.pad(packed, (0, num_blocks * bits - packed.numel())).view(num_blocks, bits)
    values = torch.zeros(num_blocks, 8, dtype=torch.int8, device=packed.device)
    sign = 2 ** (bits - 1)
    for chunk, rows in zip(torch.split(values, _CHUNK), torch.split(padded, _CHUNK), strict=True):
        chunk.view(torch.uint8)[:, :bits] = rows
        words = chunk.view(torch.int64)
        for low, high, shift in reversed(_rounds(bits)):
            words = (words & low) | (words & high) << shift
        torch.sub((words ^ _low_bits(1, 8) * sign).view(torch.int8), sign, out=chunk)
    return values.view(-1)[:count]


def _rounds(bits: int) -> list[tuple[int, int, int]]:
    """Masks and shift of each round: two neighbours of `used` bits, `width` bits apart, become one of twice as many."""
    rounds = []
    for width in (8, 16, 32):
        used = bits * width // 8
        low = _low_bits(used, 2 * width)
        rounds.append((low, low << used, width - used))
    return rounds


def _low_bits(used: int, width: int) -> int:
    """A 64-bit word in which the lowest `used` bits of every `width` are set."""
    return sum((2**used - 1) << start for start in range(0, 64, width))


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1..8, not {bits}")
