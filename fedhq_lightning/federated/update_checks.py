"""Whether an update may count: its values are numbers, variances are none below zero, and it is not far too long.

How long is too long, the other updates say: a bound of a multiple of their median norm holds while fewer than half of
the clients are hostile. Parameters and buffers are measured apart, since batch statistics may be a thousand times
larger than what training moves weights by. A client with more examples than usual takes more steps and may go as much
farther; one with fewer is measured like the usual one, for its few steps may be the longest.

Source: bounding norms against poisoned models, Sun et al. 2019, "Can You Really Backdoor Federated Learning?", where
the bound is fixed; the median as reference is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median_high
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.chunk_loops import CHUNK
from fedhq_lightning.federated.chunk_sum import MAX_VALUE
from fedhq_lightning.federated.payload import PackedState, PayloadError
from fedhq_lightning.quantize.native.lanes import native
from fedhq_lightning.quantize.packed_weight import PackedWeight


class Norms(NamedTuple):
    """Euclidean norms of an update; as JSON, a list."""

    parameters: float
    buffers: float

    def over(self, factor: float) -> Norms:
        """Both, divided."""
        return Norms(self.parameters / factor, self.buffers / factor)


NOT_FINITE = "the update holds values that are not finite"
_FEWEST = 3
"""Of fewer updates none can be told to be unlike the others."""
_SMALL = CHUNK // 16
_ROUNDING = 2.0**-20
"""A variance of next to zero may be that much of what was received below it, by rounding."""


def check_values(update: PackedState, bases: Mapping[str, Tensor] | None = None) -> None:
    """Refuse an update with values that cannot be.

    Args:
        update: As it arrived.
        bases: What its tensors are differences to; None where they are models.

    Raises:
        PayloadError: A scale that is not above zero, or a variance below it.
    """
    scales = [value.scales.reshape(-1) for value in update.values() if isinstance(value, PackedWeight)]
    # A scale that is no number is not above zero either.
    if scales and not bool((torch.cat(scales) > 0).all()):
        raise PayloadError("it holds scales that are not above 0")
    for name, value in update.items():
        if name.endswith("running_var") and isinstance(value, Tensor):
            base = torch.zeros(()) if bases is None else bases[name]
            if bool((value + base < -_ROUNDING * base).any()):
                raise PayloadError(f"{name}: variances below 0")


def is_finite(update: Mapping[str, Tensor | PackedWeight]) -> bool:
    """Whether every float value is finite."""
    return all(
        value.is_finite() if isinstance(value, PackedWeight) else _has_finite_values(value) for value in update.values()
    )


def norms_of(update: PackedState, bases: Mapping[str, Tensor] | None, parameter_names: frozenset[str]) -> Norms:
    """How far an update moves the model.

    Args:
        update: As it arrived.
        bases: What is taken off it before, where it is a model; None where it is a difference.
        parameter_names: The others are buffers.

    Raises:
        PayloadError: They are no numbers, because values are none or too large.
    """
    squares, scratch = [0.0, 0.0], torch.empty(CHUNK)
    for is_buffer in (False, True):
        names = [name for name in update if (name not in parameter_names) == is_buffer]
        for values, base in _pieces(update, names, bases, scratch):
            squares[is_buffer] += _square_norm(values if base is None else values - base)
    if not math.isfinite(sum(squares)):
        too_large = f"it holds a magnitude of {MAX_VALUE:.0f} and more"
        raise PayloadError(too_large if is_finite(update) else NOT_FINITE)
    return Norms(math.sqrt(squares[0]), math.sqrt(squares[1]))


def limits_of(norms: Sequence[Norms], usual: Norms | None, ratio: float) -> tuple[Norms, Norms]:
    """The norms beyond which updates do not count.

    Args:
        norms: Of all updates of the round.
        usual: Median norms of the round before, or None.
        ratio: How many times the larger of both medians is too much.

    Returns:
        The limits, and the median norms for the round that follows; both regardless of the order of the updates.
    """
    limits, medians = [], []
    for group in (0, 1):
        moved = [each[group] for each in norms if each[group] > 0]
        before = 0.0 if usual is None else usual[group]
        median = median_high(moved) if len(moved) >= _FEWEST else 0.0
        reference = max(median, before)
        # Of one or two the larger is not refused for the smaller's sake.
        limits.append(ratio * reference if reference and len(moved) >= _FEWEST else math.inf)
        medians.append(median or before)
    return Norms(*limits), Norms(*medians)


def check_norm_ratio(ratio: Any) -> None:
    """Refuse a `max_norm_ratio` that cannot work.

    Raises:
        ConfigurationError: No number above 1.
    """
    is_number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    if ratio is not None and not (is_number and 1 < ratio < math.inf):
        raise ConfigurationError(
            f"max_norm_ratio {ratio!r}: must be above 1, for updates of honest clients differ too; null for any norm"
        )


def check_norms(norms: Norms, limits: Norms) -> None:
    """Refuse an update that moves the model by too much.

    Raises:
        PayloadError: A norm beyond its limit.
    """
    for what, norm, limit in zip(Norms._fields, norms, limits, strict=True):
        if norm > limit:
            raise PayloadError(
                f"it moves the {what} by a norm of {norm:.3g}; in this round {limit:.3g} is the most that counts "
                "(max_norm_ratio times the median)"
            )


def _pieces(
    update: PackedState, names: Sequence[str], bases: Mapping[str, Tensor] | None, scratch: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Some tensors of an update in one row, a piece at a time, each until the next; with what is taken off it."""
    small: list[str] = []
    for name in names:
        value = update[name]
        base = None if bases is None else bases[name].reshape(-1)
        if isinstance(value, Tensor):
            if value.numel() < _SMALL:
                small.append(name)  # a call for each would take longer than all the rest
            else:
                yield value.reshape(-1), base
        elif native(scratch, value.scales) is None:
            yield value.decoded().reshape(-1), base
        else:
            for begin in range(0, count := math.prod(value.shape), CHUNK):
                part = scratch[: min(CHUNK, count - begin)]
                value.read(begin, part)
                yield part, None if base is None else base[begin : begin + len(part)]
    if small:
        bases_of_small = None if bases is None else torch.cat([bases[name].reshape(-1) for name in small])
        yield torch.cat([update[name].reshape(-1) for name in small]), bases_of_small  # type: ignore[union-attr]


def _square_norm(values: Tensor) -> float:
    # In float32, whose bits depend on the values alone: torch adds a contiguous tensor up in one order.
    return float(torch.linalg.vector_norm(values.float())) ** 2


def _has_finite_values(tensor: Tensor) -> bool:
    # A sum is finite only where all terms are, and much faster; where it is not, it may itself have overflown.
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
