"""What code of the user's may set for the whole process, and all that runs after it would meet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Leave threads, default dtype, gradients on or off, and the working directory as they were before."""
    threads, dtype, has_gradients = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    place = _working_directory()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        torch.set_grad_enabled(has_gradients)
        if torch.are_deterministic_algorithms_enabled() != is_deterministic:
            torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
        if place is not None and _working_directory() != place:
            os.chdir(place)


def _working_directory() -> str | None:
    """None where it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
