"""`fedhq runs`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedhq_lightning.cli.parser import AddCommand, path
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.quiet import say_line

if TYPE_CHECKING:
    from fedhq_lightning.run.listed_runs import ListedRun

_EPILOG = """examples:
  fedhq runs                                  the newest runs in runs/
  fedhq runs --last 0                         all of them
  fedhq runs comparisons/digits-smoke         those of a comparison
  fedhq runs results                          those of --trainer.default_root_dir=results; then: report results/NAME
  fedhq runs --json                           for another program

The first column is what `resume`, `report`, `eval` and warm_start take in place of the folder: the name that
fedhq run --name gave, else the run's id; of a run elsewhere than in runs/, DIR/NAME. Sizes are on this disk.
"""
_HEADER = ("run", "recipe", "began", "state", "metric", "size")
_DEFAULT_LAST = 30
_GAP = 2
"""Letters between two columns; one is the box's own."""
_LEAST_OF_A_NAME = 8


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    runs = add_command("runs", _runs, "List runs, the newest first.", _EPILOG, takes_overrides=False)
    runs.add_argument("folder", metavar="DIR", type=path, nargs="?", default=Path("runs"), help="default: runs")
    runs.add_argument("--last", metavar="N", default=str(_DEFAULT_LAST), help="default: 30; 0 for all")
    runs.add_argument("--json", action="store_true", help="a list with all that is known of each")


def _runs(known: argparse.Namespace, rest: list[str]) -> None:
    from fedhq_lightning.run.listed_runs import listed, newest_runs

    if not known.last.isdecimal():
        raise ConfigurationError(f"--last {known.last!r}: must be a whole number, 0 for all")
    if not known.folder.is_dir():
        raise ConfigurationError(
            f"runs: {known.folder} is no folder; runs are made in trainer.default_root_dir, by default runs"
        )
    found = newest_runs(known.folder)
    shown = list(listed(found[: int(known.last) or None]))
    if known.json:
        say_line(json.dumps([asdict(each) for each in shown], indent=1), sys.stdout)
    elif shown:
        _print(shown)
        if len(shown) < len(found):
            say_line(f"{len(found) - len(shown):,} older ones are not shown; all: --last 0", sys.stdout)
    else:
        say_line(f"no runs in {known.folder}", sys.stdout)


def _print(runs: Sequence[ListedRun]) -> None:
    """A table on a terminal, in narrow ones without the metrics' names; plain aligned lines elsewhere."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from fedhq_lightning.report.final_table import aligned, on_terminal
    from fedhq_lightning.support.terminal import Terminal

    rows, console = [_row(each) for each in runs], Terminal()
    if not on_terminal(console):
        text = "\n".join(aligned([_HEADER, *rows]))
        console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        return
    if sum(_widths(rows)) + _GAP * (len(_HEADER) - 1) > console.width:
        rows = [(*row[:4], row[4].partition(" ")[0], row[5]) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    for name, width in zip(_HEADER, _widths(rows), strict=True):
        gives_way = name in ("run", "recipe")
        side: Literal["left", "right"] = "right" if name == "size" else "left"
        table.add_column(name, no_wrap=True, justify=side, min_width=_LEAST_OF_A_NAME if gives_way else width)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]


def _row(run: ListedRun) -> tuple[str, ...]:
    from fedhq_lightning.report.formats import format_bytes, format_metric

    state = run.state
    if state != "done":
        state += f" {run.rounds}" + ("" if run.max_rounds is None else f"/{run.max_rounds}")
    metric = "-" if run.metric is None else f"{format_metric(run.metric)} {run.metric_name or ''}".rstrip()
    began = run.began[:16].replace("T", " ")
    return run.name or run.id, run.recipe, began, state, metric, format_bytes(run.bytes)
