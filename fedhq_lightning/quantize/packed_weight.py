"""A weight on its grid as it travels: integers packed to the grid's bits, and scales.

Both ways take one pass over the weight where kernels of our own compute; else they are rounding and packing, and
unpacking and scaling, with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhq_lightning.quantize.grid import dequantize_weight, quantize_weight, quantize_weight_randomly
from fedhq_lightning.quantize.native.lanes import native
from fedhq_lightning.quantize.packing import pack, packed_bytes, unpack
from fedhq_lightning.quantize.scheme import LayerScheme


def pack_weight(
    weight: Tensor, grid: LayerScheme, base: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Round a weight, or how it differs from another, to a grid, and pack it.

    Args:
        weight: (out, ...) floating point, any device.
        grid: Its grid.
        base: What is taken off before; as the weight, or None.
        generator: Of whether values are rounded up or down, see `quantize_weight_randomly`; None rounds to the nearest.

    Returns:
        Packed integers, uint8 (ceil(count * bits / 8),), and scales, fp32 (out, groups), on the CPU.

    Raises:
        ValueError: The group size does not divide the flattened input.
    """
    weight = weight.detach()
    inner = math.prod(weight.shape[1:])
    size = grid.group_size or inner
    if generator is None and weight.numel() and inner % size == 0 and (kernels := native(weight, base)) is not None:
        held = None if base is None else base.detach().contiguous()
        packed, scales = kernels.pack_weight(weight.reshape(-1, size).contiguous(), held, grid.weight_bits)
        return packed, scales.view(weight.shape[0], inner // size)
    if base is not None:
        weight = weight - base.to(weight.device)
    weight = weight.cpu().float()
    integers, scales = (
        quantize_weight(weight, grid) if generator is None else quantize_weight_randomly(weight, grid, generator)
    )
    return pack(integers, grid.weight_bits), scales.contiguous()


@dataclass(frozen=True)
class PackedWeight:
    """What `pack_weight` made.

    Attributes:
        packed: uint8, as there.
        scales: fp32 (out, groups), as there.
        bits: Of an integer, 2..8.
        shape: The weight's, (out, ...).
        dtype: The weight's, floating point.
    """

    packed: Tensor
    scales: Tensor
    bits: int
    shape: Sequence[int]
    dtype: torch.dtype

    def decoded(self) -> Tensor:
        """Integers times scales, as a tensor of `shape` and `dtype`."""
        values = torch.empty(tuple(self.shape))
        if values.numel() and not self.read(0, values.view(-1)):
            integers = unpack(self.packed, self.bits, values.numel()).reshape(self.shape[0], -1)
            values = dequantize_weight(integers, self.scales, self.shape)
        return values.to(self.dtype)

    def read(self, begin: int, to: Tensor) -> bool:
        """Decode some values, in float32, if kernels of our own can.

        Args:
            begin: The first, a multiple of 8.
            to: (n,) float32 on the CPU, filled.

        Returns:
            Whether it was done.
        """
        if (kernels := native(to, self.scales)) is None:
            return False
        group = math.prod(self.shape) // self.scales.numel()
        kernels.unpack_weight(self.packed, self.bits, self.scales, group, begin, to)
        return True

    def part(self, begin: int, end: int) -> Tensor:
        """Some values, as `decoded` has them, without decoding the others.

        Args:
            begin: The first, a multiple of 8.
            end: After the last.

        Returns:
            (end - begin,) of `dtype`.
        """
        values = torch.empty(end - begin)
        if len(values) and not self.read(begin, values):
            packed = self.packed[begin * self.bits // 8 : packed_bytes(end, self.bits)]
            group = math.prod(self.shape) // self.scales.numel()
            scales = self.scales.reshape(-1)[begin // group : (end - 1) // group + 1].repeat_interleave(group)
            values = unpack(packed, self.bits, end - begin).float() * scales[begin % group :][: end - begin]
        return values.to(self.dtype)

    def is_finite(self) -> bool:
        """Whether all values are finite."""
        if not self.scales.numel():
            return True
        # Its scale times more than an integer can be: where that is finite, so is every value.
        most = float(self.scales.abs().max()) * 2.0**self.bits
        return most < torch.finfo(self.dtype).max or bool(self.decoded().isfinite().all())
