"""What the silos say to each other: bytes, JSON and rank 0's first weights. One silo talks to nobody."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError


class Exchange:
    """Collectives over the process group of `lightning.Trainer`; every silo calls each of them, in one order.

    Args:
        device: Where the group's backend wants its tensors: the silo's own device.
    """

    def __init__(self, device: torch.device) -> None:
        is_alone = not (dist.is_available() and dist.is_initialized())
        self.rank = 0 if is_alone else dist.get_rank()
        self.count = 1 if is_alone else dist.get_world_size()
        self._device = device

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of every silo, by rank, on every silo.

        Raises:
            RuntimeError: Another silo has ended.
        """
        if self.count == 1:
            return [data]
        with self._others_may_have_ended():
            sizes = self._sizes(len(data))
            sent = self._padded(data, max(sizes))
            rows = [torch.empty_like(sent) for _ in sizes]
            dist.all_gather(rows, sent)
        return [_to_bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]

    def gather_bytes_on_first(self, data: bytes) -> list[bytes]:
        """The same on rank 0 alone; nothing elsewhere, so that only rank 0 needs the room.

        Raises:
            RuntimeError: Another silo has ended.
        """
        if self.count == 1:
            return [data]
        with self._others_may_have_ended():
            sizes = self._sizes(len(data))
            sent = self._padded(data, max(sizes))
            rows = [torch.empty_like(sent) for _ in sizes] if self.rank == 0 else None
            dist.gather(sent, rows, dst=0)
        return [] if rows is None else [_to_bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        """One JSON value of every silo, by rank, on every silo."""
        return [json.loads(each) for each in self.gather_bytes(json.dumps(value).encode())]

    def from_first(self, value: Any) -> Any:
        """The JSON value of rank 0."""
        return self.gather(value)[0]

    def share_first_weights(self, module: nn.Module) -> None:
        """Give every silo the state of rank 0's module, in place and bit by bit.

        Raises:
            ConfigurationError: The silos' modules do not have the same tensors.
        """
        if self.count == 1:
            return
        state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        shapes = {name: (str(value.dtype), list(value.shape)) for name, value in state.items()}
        digests = self.gather(hashlib.blake2b(json.dumps(shapes).encode(), digest_size=16).hexdigest())
        if len(set(digests)) > 1:
            others = ", ".join(str(rank) for rank, digest in enumerate(digests) if digest != digests[0])
            raise ConfigurationError(
                f"the module of silo {others} has other tensors than that of silo 0; build the same module on every "
                "rank, whatever data it sees"
            )
        with torch.no_grad(), self._others_may_have_ended():
            for value in state.values():
                raw = value.detach().contiguous().reshape(-1).view(torch.uint8).to(self._device)
                raw = raw.clone() if raw.data_ptr() == value.data_ptr() else raw
                if raw.numel():
                    dist.broadcast(raw, src=0)
                    value.copy_(raw.to(value.device).view(value.dtype).reshape(value.shape))

    def _sizes(self, size: int) -> list[int]:
        mine = torch.tensor([size], device=self._device)
        found = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(found, mine)
        return [int(each) for each in found]

    def _padded(self, data: bytes, size: int) -> Tensor:
        result = torch.zeros(size, dtype=torch.uint8)
        result[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else result[:0]
        return result.to(self._device)

    @contextmanager
    def _others_may_have_ended(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"silo {self.rank} waited for the others, and one of them has ended; see what it said ({error})"
            ) from error


def _to_bytes(row: Tensor) -> bytes:
    return row.cpu().numpy().tobytes()
