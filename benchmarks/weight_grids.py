"""Weight grids to compare the shipped one with, patched into the package: no option of it offers them.

`max scale` is torchao's default symmetric scale, the largest magnitude over half the range: at 4 bits a magnitude of
7.5 steps, of which a negative one rounds to -8. `no search` is the smallest scale at which no weight leaves the range.
`search` tries shares of that scale too, up to 4 bits, and takes the one with the smallest squared error of a channel.
`shipped` patches nothing: `search` up to 4 bits, `no search` above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fedhq_lightning.quantize import fused_fake, grid
from fedhq_lightning.quantize.native.lanes import kernels_of_torch

WEIGHT_GRIDS = ("shipped", "max scale", "no search", "search")


@contextmanager
def weight_grid(name: str) -> Iterator[None]:
    """Round weights on another grid, in the lanes, payloads and deployed models of this process.

    Args:
        name: One of `WEIGHT_GRIDS`.

    Raises:
        ValueError: Another name.
    """
    if name not in WEIGHT_GRIDS:
        raise ValueError(f"weight grid {name!r}: allowed are {', '.join(WEIGHT_GRIDS)}")
    patches: list[tuple[Any, str, Any]] = []
    if name == "max scale":
        patches = [(module, "weight_integers", max_scale_integers) for module in (grid, fused_fake)]
    elif name != "shipped":
        patches = [(grid, "_MOST_SEARCHED_BITS", 4 if name == "search" else 0)]
    originals = [(module, attribute, getattr(module, attribute)) for module, attribute, _ in patches]
    try:
        _assign(patches)
        # Kernels in C++ have the shipped grid in them.
        with kernels_of_torch() if patches else nullcontext():
            yield
    finally:
        _assign(originals)


def _assign(patches: list[tuple[Any, str, Any]]) -> None:
    for module, attribute, value in patches:
        setattr(module, attribute, value)
    # They hold compiled kernels, which were traced from what stood there before.
    kernels: tuple[Callable[..., Any], ...] = (grid._row_quantizer, fused_fake._weight_kernel)
    for kernel in kernels:
        kernel.cache_clear()  # type: ignore[attr-defined]  # of functools.cache


def max_scale_integers(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`grid.weight_integers` with the scale of torchao's MappingType.SYMMETRIC."""
    lowest, highest = grid.integer_range(bits)
    largest = rows.abs().amax(dim=1, keepdim=True)
    scale = (largest / ((highest - lowest) / 2)).clamp(min=torch.finfo(torch.float32).smallest_normal)
    integers = (rows * (1.0 / scale)).round().clamp(lowest, highest)
    # A diverged client's weights: its scales say that they are not finite, and it is quarantined.
    return integers.nan_to_num(nan=0.0), scale
