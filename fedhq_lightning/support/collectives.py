"""What the processes of a run say to each other. One process talks to nobody."""

from __future__ import annotations

import atexit
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.rank_zero import rank_zero_only

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.exact_mean import ExactMean, padded
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.types import ClientId

Item = TypeVar("Item")


@contextmanager
def lightning_quiet() -> Iterator[None]:
    """Without Lightning's notices about devices and processes; its warnings still show.

    The last part of Lightning that is imported takes over what the others log.
    """
    with libraries_quiet("lightning.fabric", "lightning.pytorch", level=logging.WARNING):
        yield


def is_first_process() -> bool:
    """Whether this is process 0, also before the others are started."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def launch(fabric: Fabric) -> Processes:
    """Start the processes that are not running yet; what they say to each other."""
    with lightning_quiet():
        fabric.launch()
    leave_group_at_exit()
    return Processes(fabric)


def leave_group_at_exit() -> None:
    """Have gloo's threads end before the interpreter does.

    Else they may abort the process, whatever its exit code was to be. Lightning sees to it with nccl alone.
    """
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Processes:
    """Rank, count and collectives, over Fabric. Only tensors and JSON travel."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.rank = fabric.global_rank
        self.count = fabric.world_size

    def gather(self, value: Any) -> list[Any]:
        """One JSON value of every process, by rank, on every process."""
        if self.count == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self._all_gather(torch.tensor([data.numel()]))
        padded_data = torch.zeros(int(sizes.max()), dtype=torch.uint8)
        padded_data[: data.numel()] = data
        rows = self._all_gather(padded_data)
        return [json.loads(bytes(row[: int(size)].tolist())) for row, size in zip(rows, sizes.flatten(), strict=True)]

    def broadcast(self, value: Any) -> Any:
        """The JSON value of process 0."""
        return self.gather(value)[0]

    def from_first(self, action: Callable[[], Any]) -> Any:
        """What `action`, run by process 0 alone, returns, as JSON can hold it.

        Raises:
            ConfigurationError: By `action`; raised on every process, so that none waits for one that is gone.
        """
        value, refusal = None, None
        if self.rank == 0:
            try:
                value = action()
            except ConfigurationError as error:
                refusal = error
        value, words = self.broadcast([value, None if refusal is None else str(refusal)])
        if words is not None:
            raise refusal or ConfigurationError(words)
        return value

    def reduce(self, mean: ExactMean) -> ExactMean:
        """Sum of the processes' accumulators, on every process."""
        if self.count == 1:
            return mean
        total = ExactMean()
        shapes = self.gather({name: list(limbs.shape) for name, limbs in mean.limbs.items()})
        total.total_weight = sum(self.gather(mean.total_weight))
        for name in dict.fromkeys(name for each in shapes for name in each):
            held = [each[name] for each in shapes if name in each]
            num_digits = max(shape[0] for shape in held)
            empty = torch.zeros(num_digits, *held[0][1:], dtype=torch.int64)
            limbs = padded(mean.limbs[name], num_digits) if name in mean.limbs else empty
            reduced = self._fabric.all_reduce(limbs.to(self._fabric.device), reduce_op="sum")
            assert isinstance(reduced, torch.Tensor)
            total.limbs[name] = reduced.cpu()
        return total

    def share(self, cohort: Sequence[ClientId], work: Sequence[float]) -> list[ClientId]:
        """This process's part of the cohort: the largest first, each to the process with the least work so far."""
        loads = [0.0] * self.count
        mine = []
        for position in sorted(range(len(cohort)), key=lambda index: (-work[index], index)):
            rank = loads.index(min(loads))
            loads[rank] += work[position]
            if rank == self.rank:
                mine.append(cohort[position])
        return mine

    def barrier(self) -> None:
        """Wait for all."""
        self._fabric.barrier()

    def _all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        gathered = self._fabric.all_gather(tensor.to(self._fabric.device))
        assert isinstance(gathered, torch.Tensor)
        return gathered.reshape(self.count, *tensor.shape).cpu()
