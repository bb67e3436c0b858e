"""The allocator that decides once, before round 1."""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Literal, TypeAlias, get_args

from fedhq_lightning.allocation.protocol import AllocationContext, Allocator
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.samples import FEW, sample_of
from fedhq_lightning.types import MODES, ClientId, Mode, Plan

By: TypeAlias = Literal["random", "divergence"]
"""Whom a share of QAT clients picks."""

_MOST_SAMPLED = 1_000


class FixedAllocator(Allocator):
    """Gives a client one mode in all rounds.

    Args:
        allocation: A mode for everybody; or the share of clients, 0 to 1, that trains in `qat` while the rest trains in
            `ptq`; or a map client_id -> mode that names every client (ids may be given as text or as numbers).
        by: Whom a share picks: clients at random by the run's seed, or those whose labels diverge most. The number
            picked is the share of all clients, rounded half up. A larger share keeps everybody whom a smaller one
            picks. Of more than 10,000 clients each is looked at when it is drawn: the share is then met on average,
            and divergences are compared with those of a sample of a thousand.

    Raises:
        ConfigurationError: Unknown mode or choice, a share outside 0..1, an empty map, or `by="divergence"` without a
            share.
    """

    looks_at_max_rounds = False

    def __init__(self, allocation: Mode | float | Mapping[ClientId, Mode] = "ptq", by: By = "random") -> None:
        if by not in get_args(By):
            raise ConfigurationError(
                f"FixedAllocator: by={by!r}; allowed are {', '.join(get_args(By))}{nearest(str(by), get_args(By))}"
            )
        if isinstance(allocation, str):
            _check_mode(allocation, "")
        elif isinstance(allocation, Mapping):
            if not allocation:
                raise ConfigurationError("FixedAllocator: the map is empty; name every client, or give a mode")
            for client_id, mode in allocation.items():
                _check_mode(mode, f" for client {client_id!r}")
        elif isinstance(allocation, bool) or not isinstance(allocation, int | float) or not 0 <= allocation <= 1:
            raise ConfigurationError(
                f"FixedAllocator: allocation {allocation!r}; allowed are a mode ({', '.join(MODES)}), a share of QAT "
                "clients from 0 to 1, or a map client_id -> mode"
            )
        if by == "divergence" and isinstance(allocation, str | Mapping):
            raise ConfigurationError("FixedAllocator: by='divergence' says whom a share picks; give a number 0 to 1")
        self.allocation = allocation
        self.by = by
        self.wants_label_divergence = by == "divergence"
        self.plans_each_client_alone = by == "random"
        self._mode_of: Callable[[ClientId], Mode] | None = None

    def begin(self, context: AllocationContext) -> None:
        """Settle every client's mode.

        Raises:
            ConfigurationError: The map leaves a client out or names an unknown one; or `by="divergence"` and the data
                tell no label counts, or a divergence is not a number.
        """
        if isinstance(self.allocation, str):
            mode = self.allocation
            self._mode_of = lambda client_id: mode
        elif isinstance(self.allocation, Mapping):
            self._mode_of = _from_map(self.allocation, context.client_ids)
        elif self.by == "divergence":
            self._mode_of = _most_divergent(float(self.allocation), context)
        else:
            self._mode_of = _at_random(float(self.allocation), context)

    def propose(self, round_number: int, cohort: Sequence[ClientId]) -> Plan:
        """The settled modes of this cohort; the same in every round."""
        if self._mode_of is None:
            raise RuntimeError("FixedAllocator.propose before begin: the trainer calls begin(context) once")
        return Plan({client_id: self._mode_of(client_id) for client_id in cohort}, reason=self._reason())

    def _reason(self) -> str:
        if isinstance(self.allocation, str):
            return f"every client trains in {self.allocation}"
        if isinstance(self.allocation, Mapping):
            return "modes as mapped by client"
        picked = "at random" if self.by == "random" else "with the most divergent labels"
        return f"{self.allocation:.0%} of the clients, {picked}, train in QAT, the others in PTQ"


def _check_mode(mode: object, where: str) -> None:
    if mode not in MODES:
        raise ConfigurationError(
            f"FixedAllocator: mode {mode!r}{where}; allowed are {', '.join(MODES)}{nearest(str(mode), MODES)}"
        )


def _from_map(given: Mapping[ClientId, Mode], client_ids: Sequence[ClientId]) -> Callable[[ClientId], Mode]:
    # YAML and the command line may turn 3 into "3" or back.
    by_text = {str(client_id): mode for client_id, mode in given.items()}
    if len(by_text) != len(given):
        raise ConfigurationError("FixedAllocator: the map names a client twice, as a number and as text")
    known = {str(client_id) for client_id in client_ids}
    missing = [client_id for client_id in client_ids if str(client_id) not in by_text]
    if missing:
        raise ConfigurationError(
            f"FixedAllocator: the map leaves out {len(missing)} of {len(client_ids)} clients, the first is "
            f"{missing[0]!r}; name every client"
        )
    for text in by_text:
        if text not in known:
            raise ConfigurationError(
                f"FixedAllocator: the map names client {text!r}, which the data module does not have"
                f"{nearest(text, known)}"
            )
    return lambda client_id: by_text[str(client_id)]


def _num_picked(share: float, num_clients: int) -> int:
    return min(num_clients, math.floor(share * num_clients + 0.5))


def _most_divergent(share: float, context: AllocationContext) -> Callable[[ClientId], Mode]:
    if context.divergence is None:
        raise ConfigurationError(
            "FixedAllocator: by='divergence' needs the clients' label counts, and the data module tells none; "
            "implement label_counts(client_id), or use by='random'"
        )
    divergence = context.divergence

    def rank(client_id: ClientId) -> tuple[float, int]:
        value = divergence(client_id, "total_variation")
        if math.isnan(value):
            raise ConfigurationError(f"FixedAllocator: the label divergence of client {client_id!r} is not a number")
        # Equal divergence: the seed decides, not the order of the list.
        return value, -_hash(context.seed, client_id)

    num_clients = len(context.client_ids)
    if num_clients > FEW:
        some = [each for each in sample_of(context.client_ids, _MOST_SAMPLED) if context.trains(each)]
        highest = heapq.nlargest(_num_picked(share, len(some)), map(rank, some))
        return lambda client_id: "qat" if highest and rank(client_id) >= highest[-1] else "ptq"
    num_picked = _num_picked(share, num_clients)
    picked = frozenset(heapq.nlargest(num_picked, context.client_ids, key=rank))
    return lambda client_id: "qat" if client_id in picked else "ptq"


def _at_random(share: float, context: AllocationContext) -> Callable[[ClientId], Mode]:
    """QAT for the clients with the smallest hashes: one number is kept in place of a set."""
    seed, client_ids = context.seed, context.client_ids
    if len(client_ids) > FEW:
        threshold = math.floor(share * 2**64) - 1
    else:
        num_picked = _num_picked(share, len(client_ids))
        threshold = heapq.nsmallest(num_picked, (_hash(seed, each) for each in client_ids))[-1] if num_picked else -1
    return lambda client_id: "qat" if _hash(seed, client_id) <= threshold else "ptq"


def _hash(seed: int, client_id: ClientId) -> int:
    """64 bits of (seed, client), the same on every machine; 3 and "3" are different clients."""
    text = f"allocation/{seed}/{type(client_id).__name__}/{client_id}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
