"""BatchNorm statistics of a model, found in a forward pass over a client's examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from fedhq_lightning.types import StateDict

_PLAIN_FORWARDS = (_BatchNorm.forward, SyncBatchNorm.forward)


class TooFewValuesError(ValueError):
    """A BatchNorm layer got a single value per channel, which has no variance."""


def tracked_layers(module: nn.Module) -> dict[str, list[str]]:
    """BatchNorm layers that keep running statistics, by their first name, with all the names that each goes by.

    Of any number of dimensions, synchronized or not. A subclass with a `forward` of its own is left out: what its
    statistics are, it alone knows.
    """
    names: dict[int, list[str]] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        if _is_tracked(layer):
            names.setdefault(id(layer), []).append(name)
    return {each[0]: each for each in names.values()}


def are_as_made(module: nn.Module) -> bool:
    """Whether a BatchNorm layer still has the running statistics that it was made with: no batch has reached it."""
    layers = (module.get_submodule(name) for name in tracked_layers(module))
    return any(layer.num_batches_tracked == 0 for layer in layers)


def _is_tracked(layer: nn.Module) -> bool:
    return (
        isinstance(layer, _BatchNorm)
        and type(layer).forward in _PLAIN_FORWARDS
        and "forward" not in vars(layer)
        and layer.running_mean is not None
        and layer.running_var is not None
    )


def batch_moments(module: nn.Module, layers: Iterable[str], forward: Callable[[], object]) -> StateDict:
    """Mean and variance per channel of what BatchNorm layers get in one pass, each normalizing by what it got.

    All else runs as in evaluation, without dropout and gradients; as in training where that fails, such as for a
    forward that returns another thing then. A layer that the pass does not reach has no entry; one that it reaches
    several times has those of everything that it got.

    Args:
        module: Its mode and its running statistics stay as they are.
        layers: Names of BatchNorm layers.
        forward: Runs the module on a batch.

    Returns:
        `LAYER.running_mean` and `LAYER.running_var`, (channels,) float32 on the CPU; the variance is the biased one.

    Raises:
        TooFewValuesError: A layer got a single value per channel.
    """
    names = list(layers)
    try:
        return _moments_in(False, module, names, forward)
    except TooFewValuesError:
        raise
    except Exception:
        return _moments_in(True, module, names, forward)


def _moments_in(training: bool, module: nn.Module, layers: Sequence[str], forward: Callable[[], object]) -> StateDict:
    found = {name: _Moments() for name in layers}
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.train(training)
        # Compiled parts are run as they were written: what was compiled knows the layers as they were.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), _normalizing_by_batch(module, found):
            forward()
    finally:
        for part, was_training in modes:
            part.training = was_training
    return {
        f"{name}.{kind}": value.float().cpu()
        for name, moments in found.items()
        if moments.count
        for kind, value in (("running_mean", moments.mean), ("running_var", moments.variance))
    }


class _Moments:
    """Count, mean and variance per channel of the values so far, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.variance = torch.zeros((), dtype=torch.float64)

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Add as many values of that mean and variance.

        Source: Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
        """
        total = self.count + count
        share, apart = count / total, mean.double() - self.mean
        self.variance = (1 - share) * self.variance + share * variance.double() + share * (1 - share) * apart**2
        self.mean = self.mean + share * apart
        self.count = total


@contextmanager
def _normalizing_by_batch(module: nn.Module, found: dict[str, _Moments]) -> Iterator[None]:
    """Layers answer by the statistics of what they get, and add it to those found.

    By functions of their own rather than in training mode, in which synchronized ones would wait for other processes.
    """
    layers = [module.get_submodule(name) for name in found]
    try:
        for layer, moments in zip(layers, found.values(), strict=True):
            assert isinstance(layer, _BatchNorm)
            layer.forward = partial(_normalize, layer, moments)  # type: ignore[method-assign]  # on this object only
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _normalize(layer: _BatchNorm, moments: _Moments, inputs: Tensor) -> Tensor:
    count = inputs.numel() // inputs.shape[1]
    if count < 2:
        raise TooFewValuesError("a single value per channel has no variance")
    across = [dim for dim in range(inputs.dim()) if dim != 1]
    variance, mean = torch.var_mean(inputs.float(), across, correction=0)
    moments.add(count, mean, variance)
    normalized: Tensor = nn.functional.batch_norm(inputs, mean, variance, layer.weight, layer.bias, eps=layer.eps)
    return normalized
