"""Whether a run's allocator has a scheme to allot, and its deadline clients that keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.allocation import Allocator, FixedAllocator
from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.types import MODES, ClientId, Mode


def _is_all_fp(allocator: Allocator) -> bool:
    if not isinstance(allocator, FixedAllocator):
        return False
    allocation = allocator.allocation
    return set(allocation.values() if isinstance(allocation, Mapping) else [allocation]) == {"fp"}


def check_allocation(
    settings: RunSettings, allocator: Allocator, client_ids: Sequence[ClientId], clock: VirtualClock
) -> None:
    """Refuse an allocator or a deadline with which no round could do what it should.

    Args:
        settings: What was asked for.
        allocator: Set up.
        client_ids: Of the clients that hold data.
        clock: Tells their virtual seconds.

    Raises:
        ConfigurationError: Modes without a scheme, or a deadline that nobody keeps.
    """
    if settings.scheme is None and not _is_all_fp(allocator):
        raise ConfigurationError(
            f"{type(allocator).__name__} may put clients into PTQ or QAT, but trainer.scheme is not set; "
            "give a scheme such as 'w4a8', or leave the allocator out to train in fp"
        )
    if settings.round_deadline is not None:
        modes = MODES if settings.scheme is not None else MODES[:1]
        # Who has no batch is never late, and never of use.
        trained = [client_id for client_id in client_ids if clock.trains(client_id)]
        _check_deadline(settings.round_deadline, clock, trained, modes)


def _check_deadline(
    deadline: float, clock: VirtualClock, client_ids: Sequence[ClientId], modes: Sequence[Mode]
) -> None:
    """Refuse a deadline that nobody keeps, and tell of one that nobody keeps the first time."""
    if all(clock.seconds(client_id, mode) > deadline for client_id in client_ids for mode in modes):
        fastest = min(clock.seconds(client_id, mode) for client_id in client_ids for mode in modes)
        raise ConfigurationError(
            f"round_deadline {deadline:g} virtual seconds: every client would be late; the fastest needs "
            f"{fastest:.3g}; raise the deadline, shorten the local fit or take a faster fleet"
        )
    if all(clock.time(each, mode, is_first=True).total > deadline for each in client_ids for mode in modes):
        rank_zero_warn(
            f"round_deadline {deadline:g} virtual seconds: every client will be late the first time that it takes "
            "part, when it also receives what no round changes, such as frozen weights; its work of that round is "
            "lost; raise the deadline to keep it"
        )
