"""Keeps a round's updates packed as they came, and hands them to a rule: as a whole, then chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from fedhq_lightning.federated.beside import model_of
from fedhq_lightning.federated.chunk_pieces import Piece, cut
from fedhq_lightning.federated.payload import PackedState
from fedhq_lightning.federated.robust.kept_updates import KeptUpdates
from fedhq_lightning.federated.robust.rule import RobustRule
from fedhq_lightning.federated.robust.update_bytes import UpdateForm, bytes_of, form_of, update_in
from fedhq_lightning.federated.server import Accumulator, exact_mean
from fedhq_lightning.federated.update_checks import NOT_FINITE, is_finite
from fedhq_lightning.quantize.packed_weight import PackedWeight
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import StateDict

_MOST_VALUES = 2**21
"""In a chunk, over all updates: 16 MiB in float64."""


class RobustAccumulator:
    """A round's updates, combined by a robust rule in place of their mean.

    Every process gets the updates of all and computes the same.

    Args:
        rule: What combines them.
        parameter_names: Trained parameters; what else a model has are buffers.
        bases: What updates are compared with, where they are models; None where they are differences.
    """

    def __init__(
        self, rule: RobustRule, parameter_names: frozenset[str], bases: Mapping[str, Tensor] | None = None
    ) -> None:
        self._rule = rule
        self._parameter_names = parameter_names
        self._bases = bases
        self._form: UpdateForm | None = None
        self._kept = KeptUpdates()

    def add(self, state: Mapping[str, Tensor | PackedWeight], weight: int) -> None:
        """Keep one update.

        Args:
            state: Float tensors or packed weights, finite; the same names, shapes and types at every call.
            weight: Number of examples, >= 1.

        Raises:
            ValueError: A value that is not finite, or another form.
        """
        if not is_finite(state):
            raise ValueError(NOT_FINITE)
        form = form_of(state)
        if self._form is not None and form != self._form:
            raise ValueError("names, shapes or types unlike those of the first update")
        self._form = form
        self._kept.add(bytes_of(state), weight)

    def mean(self, processes: Processes) -> tuple[StateDict, int]:
        """What the rule makes of all processes' updates, in float32, and the sum of their examples.

        The same on every process; nothing and 0 where nobody added any. The rule takes `min_updates` or more.
        """
        kept, form = self._of_all(processes)
        self._kept = KeptUpdates()
        if form is None:
            return {}, 0
        updates, examples = [], []
        for data, num_examples in kept.in_order():
            updates.append(update_in(data, form))
            examples.append(num_examples)
        combined = {name: torch.empty(shape) for name, _, shape, _, _ in form}
        for names in self._kinds(combined):
            cohort = PackedCohort(updates, examples, names, self._bases)
            combine = self._rule.combine(cohort)
            for pieces, values in cohort.chunks():
                cohort.put(combine(values), pieces, combined)
        return combined, sum(examples)

    def _kinds(self, names: Mapping[str, Tensor]) -> list[list[str]]:
        """Parameters, buffers, and what travels beside the model, each kind that there is."""
        model = model_of(names)
        parameters = [name for name in model if name in self._parameter_names]
        buffers = [name for name in model if name not in self._parameter_names]
        beside = [name for name in names if name not in model]
        return [kind for kind in (parameters, buffers, beside) if kind]

    def _of_all(self, processes: Processes) -> tuple[KeptUpdates, UpdateForm | None]:
        """Everybody's updates, one at a time from each process."""
        if processes.count == 1:
            return self._kept, self._form
        mine = self._kept.in_order()
        told = processes.gather([self._form, [examples for _, examples in mine]])
        form = next((each for each, _ in told if each is not None), None)
        together = KeptUpdates()
        for turn in range(max(len(examples) for _, examples in told)):
            data = bytes(memoryview(mine[turn][0])) if turn < len(mine) else b""
            for received, (_, examples) in zip(processes.gather_bytes(data), told, strict=True):
                if turn < len(examples):
                    together.add(received, examples[turn])
        return together, form


def accumulator_of(
    rule: RobustRule | None, parameter_names: frozenset[str]
) -> Callable[[StateDict | None], Accumulator]:
    """What makes a round's accumulator: of a rule, or of the exact mean."""
    if rule is None:
        return exact_mean
    return lambda bases: RobustAccumulator(rule, parameter_names, bases)


class PackedCohort:
    """One kind of tensors of a round's updates: what a rule sees of them, see `Cohort`.

    Args:
        updates: As they came.
        examples: Of each.
        names: Which of their tensors.
        bases: As for `RobustAccumulator`.
    """

    def __init__(
        self,
        updates: Sequence[PackedState],
        examples: Sequence[int],
        names: Sequence[str],
        bases: Mapping[str, Tensor] | None,
    ) -> None:
        self.num_updates = len(updates)
        self.examples = torch.tensor(examples, dtype=torch.float64)
        self._updates = updates
        self._bases = {} if bases is None else {name: bases[name].reshape(-1) for name in names if name in bases}
        most = max(8, _MOST_VALUES // len(updates) // 8 * 8)
        self._chunks = cut({name: list(updates[0][name].shape) for name in names}, most)

    @cached_property
    def products(self) -> Tensor:
        """Inner products of the updates."""
        total = torch.zeros(self.num_updates, self.num_updates, dtype=torch.float64)
        for _, values in self.chunks():
            total += values @ values.T
        return (total + total.T) / 2

    def chunks(self) -> Iterator[tuple[list[Piece], Tensor]]:
        """Chunk after chunk: which parts of which tensors, and (num_updates, n) float64, until the next."""
        for pieces in self._chunks:
            values = torch.empty(self.num_updates, sum(end - begin for _, begin, end in pieces), dtype=torch.float64)
            for row, update in zip(values, self._updates, strict=True):
                for place, (name, begin, end) in zip(_places(row, pieces), pieces, strict=True):
                    place.copy_(_part(update[name], begin, end))
                    if name in self._bases:
                        place -= self._bases[name][begin:end]
            yield pieces, values

    def put(self, chunk: Tensor, pieces: Sequence[Piece], to: StateDict) -> None:
        """Write a rule's result where its coordinates belong, and add what was taken off before.

        Args:
            chunk: (n,) float64; changed in place.
            pieces: As `chunks` gave them.
            to: Tensors of all names.
        """
        for place, (name, begin, end) in zip(_places(chunk, pieces), pieces, strict=True):
            if name in self._bases:
                place += self._bases[name][begin:end]
            to[name].view(-1)[begin:end] = place


def _places(row: Tensor, pieces: Sequence[Piece]) -> tuple[Tensor, ...]:
    return torch.split(row, [end - begin for _, begin, end in pieces])


def _part(value: Tensor | PackedWeight, begin: int, end: int) -> Tensor:
    return value.part(begin, end) if isinstance(value, PackedWeight) else value.reshape(-1)[begin:end]
