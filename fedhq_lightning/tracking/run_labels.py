"""What commands that start many runs tell trackers about each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Labels:
    """How a tracker tells a run from others and finds those that belong together.

    Attributes:
        group: What it belongs to, such as a comparison; None: its recipe.
        job_type: What it is in there, such as a trial.
        name: What it is shown as; None: the name of its folder.
        config: What else its settings are shown with.
    """

    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


_CURRENT: ContextVar[Labels] = ContextVar("labels", default=Labels())  # noqa: B039  # frozen, and its dict is not written


def current_labels() -> Labels:
    """Labels of the run that is being started."""
    return _CURRENT.get()


@contextmanager
def labelled(
    group: str | None = None,
    job_type: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Label the runs that start within the block; arguments as in `Labels`."""
    token = _CURRENT.set(Labels(group, job_type, name, config or {}))
    try:
        yield
    finally:
        _CURRENT.reset(token)
