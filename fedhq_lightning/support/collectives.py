"""What the processes of a run say to each other. One process talks to nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.support.process_watch import current_watch
from fedhq_lightning.support.quiet import libraries_quiet


@contextmanager
def lightning_quiet() -> Iterator[None]:
    """Without Lightning's notices about devices and processes; its warnings still show.

    The last part of Lightning that is imported takes over what the others log.
    """
    with libraries_quiet("lightning.fabric", "lightning.pytorch", "lightning_fabric", "pytorch_lightning"):
        yield


def is_in_group() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


class Processes:
    """Rank, count and collectives of the process group, whoever began it; every process calls each, in one order.

    Only tensors, bytes and JSON travel.

    Args:
        device: The process's own, where NCCL's collectives want their tensors; gloo's want them on the CPU. None for a
            process that computes alone, whatever group it belongs to.

    Raises:
        RunError: By every method that asks the others: one of them has ended, or does not answer.
        ConfigurationError: Likewise, where another process was refused something.
    """

    def __init__(self, device: torch.device | None) -> None:
        is_alone = device is None or not is_in_group()
        self.rank = 0 if is_alone else dist.get_rank()
        self.count = 1 if is_alone else dist.get_world_size()
        self.watch = None if is_alone else current_watch()
        self._device = device if is_alone or dist.get_backend() != "gloo" else torch.device("cpu")

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of every process, by rank, on every process."""
        if self.count == 1:
            return [data]
        sizes, sent = self._announced(data)
        if not any(sizes):
            return [b"" for _ in sizes]
        rows = [torch.empty_like(sent) for _ in sizes]
        self._finish(dist.all_gather(rows, sent, async_op=True))
        return _cut(rows, sizes)

    def gather_bytes_on_first(self, data: bytes) -> list[bytes]:
        """The bytes of every process, by rank, on process 0; nothing elsewhere, so that only it needs the room."""
        if self.count == 1:
            return [data]
        sizes, sent = self._announced(data)
        rows = [torch.empty_like(sent) for _ in sizes] if self.rank == 0 else None
        self._finish(dist.gather(sent, rows, dst=0, async_op=True))
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
        self._finish(dist.all_reduce(summed, async_op=True))
        return summed.cpu()

    def copy_from_first(self, tensor: Tensor) -> None:
        """Give `tensor` on every process the bits that it has on process 0, in place; same shape and type on each."""
        if self.count == 1 or not tensor.numel():
            return
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).to(self._device)
        raw = raw.clone() if raw.data_ptr() == tensor.data_ptr() else raw
        self._finish(dist.broadcast(raw, src=0, async_op=True))
        with torch.no_grad():
            tensor.copy_(raw.to(tensor.device).view(tensor.dtype).reshape(tensor.shape))

    def barrier(self) -> None:
        """Wait for all."""
        self.gather(None)

    def stand_down(self) -> None:
        """Look after the others no more: this process ends."""
        if self.watch is not None:
            self.watch.stand_down()

    def _announced(self, data: bytes) -> tuple[list[int], Tensor]:
        """How many bytes every process will send, by rank; and this one's, filled up to the most of them."""
        mine = torch.tensor([len(data)], device=self._device)
        told = [torch.empty_like(mine) for _ in range(self.count)]
        self._finish(dist.all_gather(told, mine, async_op=True))
        sizes = [int(each) for each in told]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return sizes, padded.to(self._device)

    def _finish(self, work: Any) -> None:
        """Wait until the others have done their part, and see now and then whether they are still there."""
        is_done = _is_done_on_cpu if self._device is None or self._device.type == "cpu" else _is_done
        not_taken_down.append(work)
        try:
            while not is_done(work):
                if self.watch is not None:
                    self.watch.check()
        except RunError:
            raise
        except RuntimeError as error:
            if self.watch is not None:
                self.watch.find_lost()
            raise RunError(f"process {self.rank} waited for the others, and one of them has ended") from error
        not_taken_down.pop()


_SECONDS_BETWEEN_LOOKS = timedelta(seconds=1)
not_taken_down: list[Any] = []
"""Collectives that have not ended well: to take one down may be to wait for it, for ever."""


def _is_done_on_cpu(work: Any) -> bool:
    """Wait a second for a collective of gloo; whether it has ended.

    Raises:
        RuntimeError: It has failed.
    """
    try:
        work.wait(_SECONDS_BETWEEN_LOOKS)
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # raises what it failed by, unless it has ended just now
    return True


def _is_done(work: Any) -> bool:
    """The same of NCCL, which takes the whole group down where a wait of its own does not end in time."""
    started, pause = time.monotonic(), 2e-5
    while not work.is_completed():
        if time.monotonic() - started > _SECONDS_BETWEEN_LOOKS.total_seconds():
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    work.wait()
    return True


def _cut(rows: Sequence[Tensor], sizes: Sequence[int]) -> list[bytes]:
    return [row[:size].cpu().numpy().tobytes() for row, size in zip(rows, sizes, strict=True)]
