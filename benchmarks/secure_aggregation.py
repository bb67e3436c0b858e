"""What secure aggregation sends and how long it takes: of one client, and of the server, a round.

python benchmarks/secure_aggregation.py     # a minute on one core; writes docs/results/secure-aggregation.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import TypeVar

import machine
import numpy as np
import results

from fedhq_lightning.federated.secure.keys import apply_masks
from fedhq_lightning.federated.secure.masking_client import MaskingClient
from fedhq_lightning.federated.secure.messages import Integers, RoundTerms
from fedhq_lightning.federated.secure.unmasking_server import UnmaskingServer

COHORTS = (10, 50)
VALUES = (100_000, 1_600_000)
BITS = (64, 32)
LOST = (0.0, 0.2)
THRESHOLD = 0.66
COLUMNS = (
    *("clients", "values", "bits", "lost", "up, MB", "of float32", "beside the input, kB", "down, kB"),
    *("client: keys, ms", "client: masks, ms", "server: sum, ms", "server: unmask, ms"),
)
TEXT = """
## A secure round

Wall milliseconds on one core of a machine with other jobs; of a client the median over its cohort. *Lost*: the share of
clients that drop out after they have shared their keys, whose masks the server takes off by itself. *Up*: all that a
client sends, keys and shares included, and how many times a float32 payload that is. *Down*: what a client receives
beside the model. *Keys*: two key pairs, shares for the others, sealed, and in the end the shares that it reveals.
*Masks*: one for each other client and its own. Threshold {threshold}. Each round's unmasked sum was compared with the
plain one: the same integers. Printed by `python benchmarks/secure_aggregation.py`.

{machine}

{table}
"""
_Result = TypeVar("_Result")


@dataclass
class Watch:
    """Adds up the wall seconds of calls."""

    seconds: float = 0.0

    def __call__(self, call: Callable[[], _Result]) -> _Result:
        """The call's result."""
        start = time.perf_counter()
        result = call()
        self.seconds += time.perf_counter() - start
        return result


@dataclass(frozen=True)
class Round:
    """What a round took.

    Attributes:
        uplink_bytes: Of one client.
        beside_bytes: That of it which is not the input.
        downlink_bytes: Of one client, beside the model.
        key_seconds: Of one client.
        mask_seconds: Of one client.
        sum_seconds: Of the server.
        unmask_seconds: Of the server.
    """

    uplink_bytes: int
    beside_bytes: int
    downlink_bytes: int
    key_seconds: float
    mask_seconds: float
    sum_seconds: float
    unmask_seconds: float


def main() -> None:
    """Measure, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, nargs="+", default=COHORTS)
    parser.add_argument("--values", type=int, nargs="+", default=VALUES)
    parser.add_argument("--output", type=Path, default=results.PAGES / "secure-aggregation.md")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    options = parser.parse_args()
    rows = []
    for size, count, bits, lost in product(options.cohorts, options.values, BITS, LOST):
        found = measure(size, count, bits, int(lost * size))
        rows.append([str(size), f"{count:,}", str(bits), f"{lost:.0%}", *_cells(found, count)])
    text = TEXT.format(
        threshold=THRESHOLD, machine=machine.describe(threads=1), table=results.table(list(COLUMNS), rows)
    )
    print(text)
    if not options.print_only:
        results.write_section("secure_aggregation", text, options.output)


def measure(size: int, count: int, bits: int, num_lost: int) -> Round:
    """One round with inputs that are drawn anew.

    Args:
        size: Clients.
        count: Values of each.
        bits: Of each value.
        num_lost: Clients that drop out after they have shared their keys.
    """
    talk = _Talk(RoundTerms("benchmark", 1, tuple(range(size)), -(-size * 66 // 100), count, bits))
    staying = range(size - num_lost)
    talk.exchange_keys()
    expected = talk.send_inputs(staying)
    talk.unmask(staying)
    if not np.array_equal(talk.server.total, expected):
        raise SystemExit("the unmasked sum is not the plain one")
    key_seconds, mask_seconds = (
        median(each[place].seconds for place in staying) for each in (talk.key_watches, talk.mask_watches)
    )
    beside = talk.sent[0]
    return Round(
        *(beside + talk.input_bytes, beside, talk.heard[0]),
        *(key_seconds, mask_seconds, talk.summing.seconds, talk.unmasking.seconds),
    )


class _Talk:
    """Clients and server of one round, what they sent beside inputs, and how long each worked."""

    def __init__(self, terms: RoundTerms) -> None:
        size = len(terms.cohort)
        self.key_watches = [Watch() for _ in range(size)]
        self.mask_watches = [Watch() for _ in range(size)]
        self.summing, self.unmasking = Watch(), Watch()
        self.server = UnmaskingServer(terms)
        self.clients = [self.key_watches[place](partial(MaskingClient, terms, place)) for place in range(size)]
        self.sent, self.heard, self.input_bytes = [0] * size, [0] * size, 0
        self._inboxes: dict[int, bytes] = {}

    def exchange_keys(self) -> None:
        for place, client in enumerate(self.clients):
            self.server.receive_keys(self._said(place, client.advertise))
        roster = self.server.roster()
        for place, client in enumerate(self.clients):
            self.server.receive_shares(self._said(place, partial(client.share_keys, roster)))
        self._inboxes = self.server.inboxes()
        self.heard = [len(roster) + len(self._inboxes[place]) for place in range(len(self.clients))]

    def send_inputs(self, staying: Iterable[int]) -> Integers:
        """Their plain sum."""
        drawn, expected = np.random.default_rng(0), np.zeros_like(self.server.total)
        for place in staying:
            values = drawn.integers(0, np.iinfo(expected.dtype).max, expected.shape, expected.dtype, endpoint=True)
            expected += values
            message = self.mask_watches[place](partial(self.clients[place].mask, self._inboxes[place], values))
            self.input_bytes = len(message)
            self.summing(partial(self.server.receive_input, message))
        return expected

    def unmask(self, staying: Iterable[int]) -> None:
        survivors = self.server.survivors()
        for place in staying:
            self.heard[place] += len(survivors)
            self.server.receive_revealed(self._said(place, partial(self.clients[place].reveal, survivors)))
        self.unmasking(lambda: apply_masks(self.server.total, self.server.masks()))

    def _said(self, place: int, answer: Callable[[], bytes]) -> bytes:
        message = self.key_watches[place](answer)
        self.sent[place] += len(message)
        return message


def _cells(found: Round, count: int) -> Sequence[str]:
    return [
        f"{found.uplink_bytes / 1e6:.2f}",
        f"{found.uplink_bytes / (4 * count):.2f}",
        f"{found.beside_bytes / 1e3:.1f}",
        f"{found.downlink_bytes / 1e3:.1f}",
        *(f"{1e3 * each:.0f}" for each in (found.key_seconds, found.mask_seconds)),
        *(f"{1e3 * each:.0f}" for each in (found.sum_seconds, found.unmask_seconds)),
    ]


if __name__ == "__main__":
    main()
