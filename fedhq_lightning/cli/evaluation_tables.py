"""What `fedhq eval` has found, and how it prints that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedhq_lightning.deploy.written_file import Agreement
from fedhq_lightning.report.final_table import aligned, on_terminal
from fedhq_lightning.report.formats import format_bytes, format_metric, format_seconds, speed_text
from fedhq_lightning.support.terminal import Terminal


@dataclass(frozen=True)
class Evaluation:
    """What `fedhq eval` has found.

    Attributes:
        model: Name of the module's class.
        scheme: The recipe's, or None.
        deployed: Which file was evaluated: "model.pt2" or its name, "model.safetensors", or None for weights alone.
        fp_metrics: By name, of the float32 weights; empty without them.
        deployed_metrics: By name, of the deployed model; empty where there is none, or validation never calls it.
        inference: As `measure_inference` returns it, or None.
        is_conversion: Whether the program is what the scheme makes of the weights: a `.pt2` file bit for bit, others
            but for rounding; None where there is nothing to compare.
        agreement: Of the program with what the scheme makes of the weights, where it is that.
    """

    model: str
    scheme: str | None
    deployed: str | None
    fp_metrics: dict[str, float]
    deployed_metrics: dict[str, float]
    inference: dict[str, Any] | None
    is_conversion: bool | None = None
    agreement: Agreement | None = None


def print_evaluation(found: Evaluation, threads: int, console: Console | None = None) -> None:
    """Print a table on a terminal (NO_COLOR is respected), plain aligned text elsewhere."""
    console = console or Terminal()
    title = f"{found.model}, {found.scheme or 'float32'}; held-out data of the recipe"
    rows = _rows(found)
    notes = _notes(found, threads)
    if not on_terminal(console):
        text = "\n".join([title, *aligned(rows), *notes])
        console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        return
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column(rows[0][0], style="dim", overflow="fold")
    for name in rows[0][1:]:
        table.add_column(Text(name), justify="right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    console.print(table)
    for note in notes:
        console.print(Text(note, style="dim"))


def _rows(found: Evaluation) -> list[Sequence[str]]:
    has_fp, deployed = bool(found.fp_metrics), found.deployed
    header = ["", *(["fp32"] if has_fp else []), *([deployed] if deployed else [])]
    rows: list[Sequence[str]] = [header]
    for name in dict.fromkeys([*found.fp_metrics, *found.deployed_metrics]):
        values = [found.fp_metrics.get(name)] * has_fp + [found.deployed_metrics.get(name)] * bool(deployed)
        rows.append([name, *map(format_metric, values)])
    if found.inference:
        rows.append(["size", *(format_bytes(found.inference[f"{kind}_bytes"]) for kind in ("fp32", "int8"))])
        rows += [
            [f"batch of {size}, wall", *(_time(times, kind) for kind in ("fp32", "int8"))]
            for size, times in found.inference["batch_sizes"].items()
        ]
    return rows


def _time(times: Mapping[str, Any], kind: str) -> str:
    middle, low, high = (format_seconds(each / 1e3) for each in (times[f"{kind}_ms"], *times[f"{kind}_ms_quartiles"]))
    return f"{middle} (measured once)" if times["repetitions"] == 1 else f"{middle} ({low} to {high})"


def _notes(found: Evaluation, threads: int) -> list[str]:
    notes = []
    if found.deployed and not found.deployed_metrics:
        notes.append("validation_step never calls the module's forward, so the deployed model was not evaluated")
    if found.scheme and not found.deployed:
        notes.append("no deployed model beside the weights: `fedhq resume` of the run writes it again")
    if not found.fp_metrics:
        notes.append("no weights.safetensors beside it: float32 was not evaluated, and nothing timed")
    if found.is_conversion is False:
        notes.append(
            f"{found.deployed} is not what scheme {found.scheme} makes of the weights beside it: it is of another "
            "scheme or round"
        )
    if found.inference:
        if found.is_conversion and found.agreement:
            notes.append(f"beside the conversion of the weights: {found.agreement.in_words()}")
            notes.append(f"weights at the scheme's bits would take {format_bytes(found.inference['packed_bytes'])}")
        on = "1 thread" if threads == 1 else f"{threads} threads"
        notes.append(f"wall times are medians of one forward on this CPU, on {on} (first to third quartile)")
        notes += [
            f"batch of {size}: int8 is {speed_text(times['speedup'])} as {times['fp32']}"
            for size, times in found.inference["batch_sizes"].items()
        ]
    return notes
