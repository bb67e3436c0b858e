"""The public grid of integers on which a secure round adds up: every client's values times its examples.

Updates have grids of their own, a scale a client and channel, so their integers do not add up. Each client therefore
puts what its payload decodes to, times its number of examples, onto one grid that all know beforehand, and adds the
number itself as one more value: the server learns the sum of both and nothing of either.

The sum is exact, modulo 2**bits, and it cannot pass half of that. What is rounded is each product, once, to the grid's
unit: the mean is within `unit * clients / (2 * examples)` of the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedhq_lightning.federated.secure.messages import Integers, ProtocolError
from fedhq_lightning.federated.update_checks import NOT_FINITE
from fedhq_lightning.types import StateDict


@dataclass(frozen=True)
class FixedPoint:
    """The grid of a run.

    Attributes:
        shapes: Name to shape of every tensor of an update, in order.
        max_value: The largest magnitude that a value may have.
        max_examples: What the examples of all clients of a round add up to at most.
        bits: 32 or 64; integers are added modulo 2**bits.
    """

    shapes: Mapping[str, tuple[int, ...]]
    max_value: float
    max_examples: int
    bits: int

    @property
    def num_values(self) -> int:
        """Integers that a client sends: its values, and its number of examples."""
        return sum(math.prod(shape) for shape in self.shapes.values()) + 1

    @cached_property
    def unit(self) -> float:
        """What 1 stands for: a power of two so large that no sum reaches a quarter of 2**bits.

        The bit that is left over takes the roundings.
        """
        largest = math.ceil(math.log2(self.max_value)) + (self.max_examples - 1).bit_length()
        return 2.0 ** (largest - (self.bits - 2))

    def integers(self, update: Mapping[str, Tensor], num_examples: int) -> Integers:
        """A client's input.

        Args:
            update: Float tensors, as its payload decodes to.
            num_examples: Its weight, 1 or more.

        Returns:
            (num_values,) unsigned, negative numbers as their complement.

        Raises:
            ProtocolError: A value that is not finite or beyond `max_value`, or other names or shapes.
        """
        if {name: tuple(value.shape) for name, value in update.items()} != dict(self.shapes):
            raise ProtocolError("an update of other names or shapes")
        if not 1 <= num_examples <= self.max_examples:
            raise ProtocolError(f"{num_examples} examples: a round can have {self.max_examples}")
        result = np.empty(self.num_values, f"<i{self.bits // 8}")
        begin = 0
        for name in self.shapes:
            values = update[name].detach().to("cpu", torch.float32).reshape(-1)
            self._check(name, values)
            # Exact: 24 bits times at most 29.
            product = values.double() * (num_examples / self.unit)
            result[begin : begin + len(values)] = product.round_().numpy()
            begin += len(values)
        result[-1] = num_examples
        return result.view(f"<u{self.bits // 8}")

    def mean(self, total: Integers) -> tuple[StateDict, int]:
        """Mean of the updates in float32, and the sum of their examples.

        Args:
            total: (num_values,) sum of all inputs, unmasked.
        """
        signed = total.view(f"<i{self.bits // 8}")
        total_examples, begin = int(signed[-1]), 0
        state: StateDict = {}
        for name, shape in self.shapes.items():
            end = begin + math.prod(shape)
            values = signed[begin:end].astype(np.float64) * self.unit / total_examples
            state[name] = torch.from_numpy(values.astype(np.float32)).reshape(shape)
            begin = end
        return state, total_examples

    def _check(self, name: str, values: Tensor) -> None:
        largest = float(values.abs().max()) if len(values) else 0.0
        if not math.isfinite(largest):
            raise ProtocolError(NOT_FINITE)
        if largest > self.max_value:
            raise ProtocolError(
                f"{name}: a magnitude of {largest:.3g}, beyond secure_aggregation.max_value {self.max_value:g}"
            )
