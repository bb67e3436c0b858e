"""Gradients of single examples, each clipped, and their sum.

Opacus' hooks find them in one backward pass, where every layer with parameters is one that Opacus knows and computes
each example by itself. The lanes do not: PTQ's convolutions round an example to steps that all examples of its batch
decide, so that one example would show in the gradients of the others. There, and where Opacus does not know a layer,
one example after the other goes through the module, as a batch of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.privacy.opacus_quietly import from_opacus

Backward = Callable[[Any], Tensor | None]
"""Runs a step of the module and its backward pass on a batch, and gives the loss, or None where there was none."""
_HOOKS = "grad_sample.grad_sample_module"
_SMALLEST = 1e-6
"""Beside a norm, so that rounding leaves no clipped gradient longer than it may be; as in Opacus."""


class ExampleGradients(Protocol):
    """Finds the clipped gradients of a batch's examples."""

    def clipped_sum(self, batch: Any, backward: Backward) -> list[Tensor]:
        """Sum over the examples, for every parameter.

        Args:
            batch: Not empty; the first dimension of its tensors is the example.
            backward: Called on the batch or on parts of it.
        """


class OneAtATime:
    """One example after the other, in whatever module.

    Args:
        parameters: That are trained.
        max_norm: What a gradient's norm over all parameters is cut down to.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], max_norm: float) -> None:
        self._parameters, self._max_norm = parameters, max_norm

    def clipped_sum(self, batch: Any, backward: Backward) -> list[Tensor]:
        """See `ExampleGradients`."""
        total = [torch.zeros_like(each) for each in self._parameters]
        for place in range(num_rows(batch)):
            for parameter in self._parameters:
                parameter.grad = None
            if backward(_example(batch, place)) is None:
                continue
            gradients = [each.grad for each in self._parameters]
            held = [each for each in gradients if each is not None]
            norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in held])))
            factor = min(1.0, self._max_norm / (norm + _SMALLEST))
            for whole, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    whole.add_(gradient, alpha=factor)
        return total


class ByOpacus:
    """All examples in one backward pass, by Opacus' hooks; they must be in place, see `opacus_hooks`.

    Args:
        parameters: That are trained.
        max_norm: As for `OneAtATime`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], max_norm: float) -> None:
        self._parameters, self._max_norm = parameters, max_norm

    def clipped_sum(self, batch: Any, backward: Backward) -> list[Tensor]:
        """See `ExampleGradients`."""
        for parameter in self._parameters:
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus' own
        backward(batch)
        held: list[Tensor | None] = [each.grad_sample for each in self._parameters]  # type: ignore[attr-defined]
        found = [None if each is None else each.float() for each in held]  # autocast has them in bf16
        norms = [torch.linalg.vector_norm(each.flatten(1), dim=1) for each in found if each is not None]
        if not norms:
            return [torch.zeros_like(each) for each in self._parameters]
        factors = (self._max_norm / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + _SMALLEST)).clamp(max=1.0)
        return [
            torch.zeros_like(parameter) if each is None else torch.einsum("n,n...->...", factors, each)
            for parameter, each in zip(self._parameters, found, strict=True)
        ]


def _example(batch: Any, place: int) -> Any:
    """A batch of one."""
    return tree_map_only(Tensor, lambda tensor: tensor[place : place + 1], batch)


def opacus_knows(module: nn.Module) -> bool:
    """Whether Opacus has gradients of single examples for every layer of a module that has trained parameters."""
    known = from_opacus(_HOOKS).GradSampleHooks.GRAD_SAMPLERS
    holders = [part for part in module.modules() if any(each.requires_grad for each in part.parameters(recurse=False))]
    return all(type(part) in known and not any(True for _ in part.buffers(recurse=False)) for part in holders)


@contextmanager
def opacus_hooks(module: nn.Module) -> Iterator[None]:
    """Opacus' hooks on a module's layers; afterwards the module is as it was."""
    hooks = from_opacus(_HOOKS).GradSampleHooks(module)
    try:
        with warnings.catch_warnings():
            # torch's, of the first layer's hook: the examples themselves have no gradient.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.cleanup()
        for part in module.modules():
            for name in ("activations", "max_batch_len"):
                vars(part).pop(name, None)


def num_rows(batch: Any) -> int:
    """Examples of a batch: rows of its tensors.

    Raises:
        ConfigurationError: It holds something else, or tensors of unlike first dimensions.
    """
    leaves = tree_flatten(batch)[0]
    sizes = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.dim() else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes:
        held = ", ".join(sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)}))
        raise ConfigurationError(
            "LocalPrivacy takes batches apart into examples, so they must be made of tensors whose first dimension is "
            f"the example, and nothing else; here it is {f'also {held}' if held else 'not so for each'}"
        )
    return int(sizes.pop())  # type: ignore[arg-type]  # not None, as has been seen
