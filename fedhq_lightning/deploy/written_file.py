"""What is told of each file of the deployed model: its size, and how what it computes agrees with the model itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedhq_lightning.deploy.export import ExportError, batch_size, first_samples
from fedhq_lightning.support.text import first_line

_MOST_DIFFERENCE = 0.5
"""Of the largest output: what is farther off computes something else."""


@dataclass(frozen=True)
class Agreement:
    """How a file's outputs agree with those of the converted module, on the samples that both were given.

    Attributes:
        samples: How many these were.
        bit_equal: Share of output values that are the same bits, 0..1.
        same_argmax: Share of samples with the same largest score, 0..1; None where no output is (samples, classes).
        largest_difference: Of two output values, relative to the largest magnitude among the module's.
    """

    samples: int
    bit_equal: float
    same_argmax: float | None
    largest_difference: float

    def in_words(self) -> str:
        """One phrase, such as "the same bits on 355 samples"."""
        on = f"on {self.samples:,} sample{'s' * (self.samples != 1)}"
        if self.bit_equal == 1:
            return f"the same bits {on}"
        classes = "" if self.same_argmax is None else f"same class for {self.same_argmax:.2%}, "
        difference = f"largest difference {self.largest_difference:.2g} of the largest output"
        return f"{self.bit_equal:.1%} of outputs the same bits, {classes}{difference}, {on}"

    @classmethod
    def of(cls, program: nn.Module, converted: nn.Module, example_args: tuple[Any, ...]) -> Agreement:
        """Run both on the same arguments, and the program on the first sample alone too.

        Args:
            program: A file as it was read back.
            converted: The module that it was made of.
            example_args: Positional arguments of one forward call, on the CPU.

        Raises:
            ExportError: The program fails on them, its outputs are of another form than the module's, or a value is
                farther off than half the largest one.
        """
        with torch.no_grad():
            for args in (first_samples(example_args, 1), example_args):
                samples = batch_size(args)
                try:
                    found = program(*args)
                except Exception as error:  # each runtime has errors of its own
                    raise ExportError(f"it fails on a batch of {samples}: {first_line(error)}") from error
                agreement = cls.between(found, converted(*args), samples)
        return agreement

    @classmethod
    def between(cls, found: Any, expected: Any, samples: int) -> Agreement:
        """Compare two outputs, nested as they may be.

        Args:
            found: What the file gave.
            expected: What the converted module gave.
            samples: How many the outputs are of.

        Raises:
            ExportError: They are not of the same form, or a value is farther off than half the largest one.
        """
        pairs = _pairs(pytree.tree_leaves(found), pytree.tree_leaves(expected))
        equal = sum(int(_same(a, b).sum()) for a, b in pairs)
        differences = [_difference(a, b) for a, b in pairs]
        scores = [(a, b) for a, b in pairs if b.dim() == 2 and b.shape[1] > 1 and b.is_floating_point()]
        agrees = [(a.argmax(1) == b.argmax(1)).float().mean().item() for a, b in scores]
        worst = max(differences, default=0.0)
        if not worst <= _MOST_DIFFERENCE:
            raise ExportError(f"it computes something else: outputs differ by {worst:.3g} of the largest")
        values = sum(b.numel() for _, b in pairs)
        return cls(samples, equal / values if values else 1.0, min(agrees, default=None), worst)


def _pairs(found: list[Any], expected: list[Any]) -> list[tuple[Tensor, Tensor]]:
    wanted = [leaf for leaf in expected if isinstance(leaf, Tensor)]
    shapes = [(tuple(leaf.shape), leaf.dtype) for leaf in wanted]
    if [(tuple(leaf.shape), leaf.dtype) for leaf in found if isinstance(leaf, Tensor)] != shapes:
        raise ExportError("its outputs are of another number, shape or dtype than the module's")
    return list(zip((leaf for leaf in found if isinstance(leaf, Tensor)), wanted, strict=True))


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _difference(a: Tensor, b: Tensor) -> float:
    differing = ~_same(a, b)
    if not bool(differing.any()):
        return 0.0
    largest = b.double().abs().nan_to_num(0.0, 0.0, 0.0).max().item()
    apart = (a.double() - b.double())[differing].abs().max().item()
    return apart / largest if largest and math.isfinite(apart) else math.inf


@dataclass(frozen=True)
class WrittenFile:
    """One file of the folder `model/`, or why it is not there.

    Attributes:
        name: Of the file: `model.onnx`.
        runtime: The package that runs it.
        bytes: Its size; None where it was not written.
        agreement: With the converted module; None where it was not compared.
        reason: Why it was not written, in one line; else empty.
        program: The file as it was read back, on torch tensors; None where there is none.
    """

    name: str
    runtime: str
    bytes: int | None = None
    agreement: Agreement | None = None
    reason: str = ""
    program: nn.Module | None = field(default=None, compare=False, repr=False)

    def described(self) -> dict[str, Any]:
        """Plain values, as `summary.json` has them."""
        told = {"name": self.name, "runtime": self.runtime, "bytes": self.bytes, "reason": self.reason or None}
        return told | {"agreement": None if self.agreement is None else asdict(self.agreement)}
