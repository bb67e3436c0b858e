"""Collects what a LightningModule logs while no Lightning Trainer is there to do it."""

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torchmetrics import Metric

from fedhq_lightning.errors import ConfigurationError

_REDUCTIONS = ("mean", "sum", "min", "max")


@dataclass
class _Reduced:
    """One logged name over one epoch."""

    reduction: str
    total: float | Tensor
    weight: int

    def update(self, value: float | Tensor, batch_size: int) -> None:
        if self.reduction == "mean":
            self.total = self.total + value * batch_size
            self.weight += batch_size
        elif self.reduction == "sum":
            self.total = self.total + value
        else:
            self.total = getattr(torch, self.reduction + "imum")(_tensor(self.total), _tensor(value))

    def compute(self) -> float | Tensor:
        return self.total / max(self.weight, 1) if self.reduction == "mean" else self.total


class LoggedValues:
    """Values passed to `self.log` during one epoch, reduced as Lightning reduces them at its end.

    Means are weighted by batch size and summed in float64. torchmetrics objects are computed and reset at the end.
    What two hooks log under one name is kept apart, and that of the hook that logged first later counts.
    A value that lies in the CPU's memory is held as a Python float: the same 64 bits, in a fraction of a tensor's time.
    """

    def __init__(self) -> None:
        self._last: dict[str, float | Tensor] = {}
        self._collected: dict[tuple[str, str], _Reduced | Metric] = {}
        self._of_earlier_loaders: dict[tuple[str, str], Tensor] = {}

    def add(
        self,
        name: str,
        value: Any,
        batch_size: int,
        reduce_fx: str | Callable[..., Any],
        both: bool = False,
        hook: str = "",
    ) -> None:
        """Take one value.

        Args:
            name: As logged, with the data loader's suffix where there are several.
            value: Number, one-element tensor or torchmetrics `Metric`.
            batch_size: Weight in a mean.
            reduce_fx: mean, sum, min or max, by name or as torch's function.
            both: Logged on step and on epoch: also kept under Lightning's forked names.
            hook: In which it was logged.

        Raises:
            ConfigurationError: Another type of value, several elements, another reduction, or a name that the same
                hook has logged of an earlier loader.
        """
        if (hook, name) in self._of_earlier_loaders:
            raise ConfigurationError(
                f"self.log({name!r}, ..., add_dataloader_idx=False) of two loaders would mix their values; give every "
                "loader a name of its own, or leave add_dataloader_idx out"
            )
        names = [name, f"{name}_epoch"] if both else [name]
        if isinstance(value, Metric):
            self._collected.update({(hook, each): value for each in names})
            return
        number = _scalar(name, value)
        self._last[name] = number
        if both:
            self._last[f"{name}_step"] = number
        for each in ((hook, each) for each in names):
            held = self._collected.get(each)
            if isinstance(held, _Reduced):
                held.update(number, batch_size)
            else:
                self._collected[each] = _start(_reduction(name, reduce_fx), number, batch_size)

    @property
    def last(self) -> dict[str, Tensor]:
        """The newest value of each name, for schedulers that step within an epoch; without what was taken."""
        return {name: _tensor(value) for name, value in self._last.items()}

    def take_last(self) -> dict[str, Tensor]:
        """What `last` holds, once."""
        taken = self.last
        self._last.clear()
        return taken

    def end_loader(self) -> None:
        """Keep what was logged of one of several loaders; a metric object goes on, as in Lightning, from there."""
        for (hook, name), value in self._collected.items():
            if (hook, name) not in self._of_earlier_loaders:
                self._of_earlier_loaders[hook, name] = _tensor(_scalar(name, value.compute()))

    def so_far(self) -> dict[str, Tensor]:
        """Values by name, in the order of their first logging; nothing is reset."""
        kept = self._of_earlier_loaders
        return {
            name: kept[hook, name] if (hook, name) in kept else _tensor(_scalar(name, value.compute()))
            for (hook, name), value in self._collected.items()
        }

    def finish(self) -> dict[str, Tensor]:
        """Values by name, as `so_far` gives them; then metric objects are reset and nothing is collected any more."""
        values = self.so_far()
        for value in self._collected.values():
            if isinstance(value, Metric):
                value.reset()
        self._collected, self._of_earlier_loaders = {}, {}
        return values


def plain(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Logged values as Python floats."""
    return {name: float(value) for name, value in values.items()}


def num_examples(batch: Any) -> int:
    """Examples in a batch, as Lightning counts them; 1 where it is of a kind that does not tell.

    Args:
        batch: As a step gets it. Where nothing tells, every batch weighs the same.
    """
    if type(batch) in (list, tuple) and all(type(each) is Tensor and each.dim() for each in batch):
        sizes = {each.size(0) for each in batch}
        if len(sizes) == 1:
            return int(sizes.pop())
    try:
        return int(extract_batch_size(batch))
    except MisconfigurationException:
        return 1


def _start(reduction: str, value: float | Tensor, batch_size: int) -> _Reduced:
    return _Reduced(reduction, value * batch_size if reduction == "mean" else value, batch_size)


def _scalar(name: str, value: Any) -> float | Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.item()) if value.is_cpu else value.detach().reshape(()).double()
    if isinstance(value, numbers.Number):
        return float(value)  # type: ignore[arg-type]  # a complex one says itself that it is none
    given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ConfigurationError(f"self.log({name!r}, ...): got {given}; log a number, a one-element tensor or a Metric")


def _tensor(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _reduction(name: str, reduce_fx: str | Callable[..., Any]) -> str:
    word = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", str(reduce_fx))
    word = {"avg": "mean", "amin": "min", "amax": "max"}.get(word, word)
    if word not in _REDUCTIONS:
        raise ConfigurationError(f"self.log({name!r}, reduce_fx={word}): must be one of {', '.join(_REDUCTIONS)}")
    return word
