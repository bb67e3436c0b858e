"""What a client's own code raises: whose it is, and in what words it goes into the records."""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.local.trainer_on_module import StepResultError
from fedhq_lightning.support.text import first_line, shortened
from fedhq_lightning.support.users_frames import users_frames

OnClientError: TypeAlias = Literal["quarantine", "retry", "raise"]
"""`quarantine`: the round goes on without the client. `retry`: the client tries once more before. `raise`: the run
ends."""

_MOST_FRAMES = 5


@dataclass(frozen=True)
class ClientError:
    """What a client's code raised, in words; the exception itself would keep alive all that its frames hold.

    Attributes:
        reason: Type, first line and place, in a line of 200 characters at most.
        traceback: The last frames, the innermost last; each a line of 200 characters at most.
        is_out_of_memory: Whether there was no memory left.
    """

    reason: str
    traceback: str
    is_out_of_memory: bool

    @classmethod
    def of(cls, error: BaseException) -> ClientError:
        """The words."""
        frames = traceback.extract_tb(error.__traceback__)
        last = (users_frames(error) or frames)[-1:]
        place = "".join(f"({Path(frame.filename).name}:{frame.lineno} in {frame.name})" for frame in last)
        said, kind = first_line(error), type(error).__name__
        told = [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames[-_MOST_FRAMES:]]
        return cls(
            f"{shortened(kind if said == kind else f'{kind}: {said}', 120)} {shortened(place, 79)}".rstrip(),
            "\n".join(shortened(line) for line in told),
            isinstance(error, MemoryError | torch.OutOfMemoryError),
        )


def is_clients(error: BaseException) -> bool:
    """Whether an error that came out of a client's fit is the client's: no interruption, no mistake in the settings."""
    if isinstance(error, ConfigurationError | RunError):
        return isinstance(error, StepResultError)
    return isinstance(error, Exception | SystemExit)


def free_memory() -> None:
    """Give back what a fit that ended for want of memory still held."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
