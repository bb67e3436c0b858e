"""Seconds and memory of the robust rules at the server; `robust_aggregation.py` prints the table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

import results
import torch
from aggregation import cnn, reset_peak, resident_bytes

from fedhq_lightning.federated.robust import RobustRule
from fedhq_lightning.federated.robust.robust_accumulator import accumulator_of
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.collectives import Processes

NUM_UPDATES = 20
REPEATS = 5
TEXT = """{updates} updates of {values:,} values, w4a8 and `delta`, {megabytes:.1f} MB each as they came, from opened
payload to result: processor seconds of one thread, median of {repeats}; and the most memory above what the process held
before (resident set).

{table}"""


def cost_table(rules: Mapping[str, RobustRule | None]) -> str:
    """What each rule costs, in words and a table.

    Args:
        rules: By name; None for the exact mean.
    """
    module = cnn()
    state = {name: value.detach() for name, value in module.state_dict().items()}
    grids = {f"{name}.weight": grid for name, grid in QuantScheme.parse("w4a8").for_layers(module).items()}
    link = Link(state, grids, "delta", "fp32")
    payloads = [
        link.up({name: value + 0.01 * torch.randn_like(value) for name, value in state.items()}, state, 1, client)
        for client in range(NUM_UPDATES)
    ]
    rows = []
    for name, rule in rules.items():
        found = [cost(rule, link, payloads, frozenset(state)) for _ in range(REPEATS)]
        seconds, peak = median(each[0] for each in found), max(each[1] for each in found)
        rows.append([f"`{name}`" if rule else name, f"{seconds:.2f}", f"{peak / 2**20:.0f}"])
    return TEXT.format(
        updates=NUM_UPDATES,
        values=sum(value.numel() for value in state.values()),
        megabytes=len(payloads[0]) / 1e6,
        repeats=REPEATS,
        table=results.table(("rule", "seconds", "MiB"), rows),
    )


def cost(rule: RobustRule | None, link: Link, payloads: list[bytes], names: frozenset[str]) -> tuple[float, int]:
    """Seconds and bytes of one round."""
    before = resident_bytes("VmRSS")
    reset_peak()
    started = time.thread_time()
    accumulator = accumulator_of(rule, names)(None)
    for client, payload in enumerate(payloads):
        accumulator.add(link.open(payload, 1, client), 10)
    accumulator.mean(Processes(None))
    return time.thread_time() - started, resident_bytes("VmHWM") - before
