"""What the processes of a run say to each other. One process talks to nobody."""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.quiet import libraries_quiet


@contextmanager
def lightning_quiet() -> Iterator[None]:
    """Without Lightning's notices about devices and processes; its warnings still show.

    The last part of Lightning that is imported takes over what the others log.
    """
    with libraries_quiet("lightning.fabric", "lightning.pytorch", "lightning_fabric", "pytorch_lightning"):
        yield


def launch(fabric: Fabric) -> Processes:
    """Start the processes that are not running yet; what they say to each other."""
    with lightning_quiet():
        fabric.launch()
    leave_group_at_exit()
    return Processes(fabric.device if fabric.world_size > 1 else None)


def leave_group_at_exit() -> None:
    """Have gloo's threads end before the interpreter does.

    Else they may abort the process, whatever its exit code was to be. Lightning sees to it with nccl alone.
    """
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    if _is_in_group():
        dist.destroy_process_group()


def _is_in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


class Processes:
    """Rank, count and collectives of the process group, whoever began it; every process calls each, in one order.

    Only tensors, bytes and JSON travel.

    Args:
        device: Where the group's backend wants its tensors: the process's own device; None for a process that
            computes alone, whatever group it belongs to.
    """

    def __init__(self, device: torch.device | None) -> None:
        is_alone = device is None or not _is_in_group()
        self.rank = 0 if is_alone else dist.get_rank()
        self.count = 1 if is_alone else dist.get_world_size()
        self._device = device

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of every process, by rank, on every process.

        Raises:
            RuntimeError: Another process has ended.
        """
        if self.count == 1:
            return [data]
        sizes, sent = self._announced(data)
        if not any(sizes):
            return [b"" for _ in sizes]
        rows = [torch.empty_like(sent) for _ in sizes]
        with self._others_may_have_ended():
            dist.all_gather(rows, sent)
        return _cut(rows, sizes)

    def gather_bytes_on_first(self, data: bytes) -> list[bytes]:
        """The bytes of every process, by rank, on process 0; nothing elsewhere, so that only process 0 needs the room.

        Raises:
            RuntimeError: Another process has ended.
        """
        if self.count == 1:
            return [data]
        sizes, sent = self._announced(data)
        rows = [torch.empty_like(sent) for _ in sizes] if self.rank == 0 else None
        with self._others_may_have_ended():
            dist.gather(sent, rows, dst=0)
        return [] if rows is None else _cut(rows, sizes)

    def gather(self, value: Any) -> list[Any]:
        """One JSON value of every process, by rank, on every process."""
        if self.count == 1:
            return [value]
        return [json.loads(each) for each in self.gather_bytes(json.dumps(value).encode())]

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

    def sum_integers(self, tensor: Tensor) -> Tensor:
        """Sum of an int64 tensor over the processes, on every process, on the CPU; exact, so in any order."""
        if self.count == 1:
            return tensor
        summed = tensor.to(self._device, copy=True)
        with self._others_may_have_ended():
            dist.all_reduce(summed)
        return summed.cpu()

    def copy_from_first(self, tensor: Tensor) -> None:
        """Give `tensor` on every process the bits that it has on process 0, in place; same shape and type on each."""
        if self.count == 1 or not tensor.numel():
            return
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).to(self._device)
        raw = raw.clone() if raw.data_ptr() == tensor.data_ptr() else raw
        with self._others_may_have_ended():
            dist.broadcast(raw, src=0)
        with torch.no_grad():
            tensor.copy_(raw.to(tensor.device).view(tensor.dtype).reshape(tensor.shape))

    def barrier(self) -> None:
        """Wait for all."""
        self.gather(None)

    def _announced(self, data: bytes) -> tuple[list[int], Tensor]:
        """How many bytes every process will send, by rank; and this one's, filled up to the most of them."""
        mine = torch.tensor([len(data)], device=self._device)
        told = [torch.empty_like(mine) for _ in range(self.count)]
        with self._others_may_have_ended():
            dist.all_gather(told, mine)
        sizes = [int(each) for each in told]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return sizes, padded.to(self._device)

    @contextmanager
    def _others_may_have_ended(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} waited for the others, and one of them has ended; see what it said ({error})"
            ) from error


def _cut(rows: Sequence[Tensor], sizes: Sequence[int]) -> list[bytes]:
    return [row[:size].cpu().numpy().tobytes() for row, size in zip(rows, sizes, strict=True)]
