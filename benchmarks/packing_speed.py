"""Speed of packing and unpacking weights, every width, large and small tensors.

    python benchmarks/packing_speed.py     # some seconds on one core; prints the table, writes docs/results/packing.md

What a payload costs its sender and its receiver besides the link.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import machine
import results
import torch

from fedhq_lightning.quantize import pack, unpack

COUNTS = (4_000_000, 50_000)
TARGET_BYTES_PER_SECOND = 500e6
TEXT = """## Packing

Packing int8 values to 1..8 bits and back, in megabytes of the fp32 weights that they stand for per second and core
(4 bytes a value). Median of {repeats} calls. Target: {target:.0f} MB/s; {verdict}. Printed by
`python benchmarks/packing_speed.py`.

{machine}

{table}
"""


def main() -> None:
    """Measure, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--output", type=Path, default=results.PAGES / "packing.md")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, slowest = [], float("inf")
    for bits in range(1, 9):
        speeds = [speed for count in COUNTS for speed in measure(bits, count, options.repeats)]
        slowest = min(slowest, *speeds)
        rows.append([str(bits), *(f"{speed / 1e6:,.0f}" for speed in speeds)])
    columns = ["bits", *(f"{way}, {count:,} values" for count in COUNTS for way in ("pack", "unpack"))]
    text = TEXT.format(
        repeats=options.repeats,
        target=TARGET_BYTES_PER_SECOND / 1e6,
        verdict=f"{'met' if slowest >= TARGET_BYTES_PER_SECOND else 'missed'}, the slowest is {slowest / 1e6:,.0f}",
        machine=machine.describe(threads=1),
        table=results.table(columns, rows),
    )
    print(text)
    if not options.print_only:
        results.write_section("packing_speed", text, options.output)


def measure(bits: int, count: int, repeats: int) -> tuple[float, float]:
    """Bytes of fp32 weights per second, packed and unpacked."""
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count,), dtype=torch.int8)
    packed = pack(values, bits)
    assert torch.equal(unpack(packed, bits, count), values)
    float_bytes = 4 * count
    return (
        float_bytes / seconds(lambda: pack(values, bits), repeats),
        float_bytes / seconds(lambda: unpack(packed, bits, count), repeats),
    )


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median over calls, after one unrecorded."""
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return median(taken)


if __name__ == "__main__":
    main()
