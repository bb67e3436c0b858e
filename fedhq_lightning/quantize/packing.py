"""True 1 to 8-bit packing of signed integers.

The layout, which payloads and packed models rely on: two's complement of `bits` bits each, the first value in the
lowest bits, bytes in ascending order, unused bits of the last byte zero. Eight values make exactly `bits` bytes, so
both ways work on blocks of eight through one 64-bit word (little-endian hosts, the only ones PyTorch ships for).
"""

import torch
from torch import Tensor

_BLOCK = 8


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
    blocks = torch.nn.functional.pad(flat, (0, -count % _BLOCK)).view(-1, _BLOCK)
    words = torch.zeros(blocks.shape[0], dtype=torch.int64, device=values.device)
    for position in range(_BLOCK):
        words |= (blocks[:, position].long() & (2**bits - 1)) << (position * bits)
    return words.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)[: packed_bytes(count, bits)].clone()


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
    num_blocks = -(-count // _BLOCK)
    padded = torch.nn.functional.pad(packed, (0, num_blocks * bits - packed.numel())).view(num_blocks, bits)
    words = torch.nn.functional.pad(padded, (0, 8 - bits)).view(torch.int64).view(-1)
    values = torch.empty(num_blocks, _BLOCK, dtype=torch.int8, device=packed.device)
    sign = 2 ** (bits - 1)
    for position in range(_BLOCK):
        raw = (words >> (position * bits)) & (2**bits - 1)
        values[:, position] = (raw ^ sign) - sign
    return values.view(-1)[:count]


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1..8, not {bits}")
