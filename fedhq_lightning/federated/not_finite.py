"""Where in a client's data values are not finite, which makes its update useless: part, batch, columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedhq_lightning.data import FederatedDataModule

_MOST_COLUMNS = 5
_HAVE = "have such values"
_PARTS_OF_TWO = ("inputs", "targets")
"""What a batch of two holds, as everywhere in Lightning."""


@dataclass
class _Part:
    """One tensor of each batch, over all of them."""

    name: str
    examples: int = 0
    odd_examples: int = 0
    first: int = 0
    odd_columns: Tensor | None = None

    def add(self, number: int, values: Tensor) -> None:
        """Take up a batch, (examples, ...)."""
        is_odd = ~values.isfinite()
        odd_examples = int(is_odd.reshape(len(values), -1).any(1).sum())
        self.examples, self.odd_examples = self.examples + len(values), self.odd_examples + odd_examples
        self.first = self.first or (number if odd_examples else 0)
        if is_odd.dim() == 2:
            columns = is_odd.any(0)
            is_like = self.odd_columns is not None and self.odd_columns.shape == columns.shape
            self.odd_columns = columns | self.odd_columns if is_like else columns  # type: ignore[operator]  # a tensor

    def told(self, column_names: Sequence[str]) -> str:
        """Where its values are not finite."""
        start = f"from training batch {self.first} on" if self.first > 1 else "from the first training batch on"
        examples = f"in {self.odd_examples:,} of {self.examples:,} examples"
        return f"its {self.name} {_HAVE} {start}, {examples}{self._columns(column_names)}"

    def _columns(self, names: Sequence[str]) -> str:
        """Which columns, where it is a table."""
        if self.odd_columns is None:
            return ""
        found = self.odd_columns.nonzero().flatten().tolist()
        has_names = len(names) == len(self.odd_columns)
        shown = [str(names[column]) if has_names else str(column) for column in found[:_MOST_COLUMNS]]
        listed = ", ".join(shown) + (f" and {len(found) - len(shown)} more" if len(found) > len(shown) else "")
        counted = "" if has_names else " (the first is 0)"
        return f", in column{'s' if len(found) > 1 else ''} {listed}{counted}"


@dataclass(frozen=True)
class OddValues:
    """Values that are not finite.

    Attributes:
        words: Such as `its inputs have such values from training batch 2 on, in 9 of 120 examples, in column bmi`.
        batch: The first that has them.
    """

    words: str
    batch: Any


def odd_values(batches: Iterable[Any], column_names: Sequence[str] = ()) -> OddValues | None:
    """What part of the batches has such values, from which batch on, in how many examples, and in which columns.

    Args:
        batches: A client's training batches.
        column_names: Of a table's columns; used where a part of the batch is (examples, columns) with as many.

    Returns:
        None where every value is finite.
    """
    parts: dict[str, _Part] = {}
    first = None
    for number, batch in enumerate(batches, start=1):
        for name, values in _tensors(batch):
            part = parts.setdefault(name, _Part(name))
            part.add(number, values)
            first = batch if part.first and first is None else first
    odd = [part for part in parts.values() if part.first]
    return OddValues(min(odd, key=lambda part: part.first).told(column_names), first) if odd else None


def blames_data(reason: str) -> bool:
    """Whether the reason of a quarantine is one of `OddValues.words`."""
    return f" {_HAVE} " in reason


def column_names(datamodule: FederatedDataModule) -> list[str]:
    """Names of a table's columns, where `model_inputs` tells them."""
    told = (datamodule.model_inputs() or {}).get("columns") or []
    return [str(each.get("name") if isinstance(each, Mapping) else each) for each in told]


def _tensors(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The float tensors of a batch that have examples, and what each is called."""
    if isinstance(batch, Tensor):
        if batch.is_floating_point() and batch.dim():
            yield name or _PARTS_OF_TWO[0], batch
    elif isinstance(batch, Mapping):
        for key, each in batch.items():
            yield from _tensors(each, f"{name}.{key}".lstrip("."))
    elif isinstance(batch, tuple | list):
        is_pair = len(batch) == 2 and not name
        for position, each in enumerate(batch):
            yield from _tensors(each, _PARTS_OF_TWO[position] if is_pair else f"{name or 'parts'} {position}")
