"""How far the runs of a comparison are: they show nothing themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from fedhq_lightning.report.final_table import on_terminal

_REFRESHES_PER_SECOND = 1


def rounds_done(runs: Path) -> int | None:
    """Rounds of the run that a cell is being made of; None where it has not begun.

    Args:
        runs: Where its run directory is made, the cell's alone.
    """
    files = sorted(runs.glob("*/*/rounds.jsonl"))
    # The first line is of the evaluation before round 1.
    return max(0, files[-1].read_bytes().count(b"\n") - 1) if files else None


@contextmanager
def shown(cells: Mapping[str, Path], max_rounds: int, console: Console) -> Iterator[None]:
    """Show a bar a run that is under way, on a terminal; elsewhere nothing.

    Args:
        cells: By what they are called, where the run of each is made.
        max_rounds: Of every run.
        console: Where to show.
    """
    if not on_terminal(console):
        yield
        return

    def drawn() -> Table:
        table = Table.grid(padding=(0, 2))
        for name, runs in cells.items():
            done = rounds_done(runs)
            if done is not None and done < max_rounds:
                table.add_row(name, ProgressBar(max_rounds, done, width=30), f"round {done}/{max_rounds}")
        return table

    with Live(get_renderable=drawn, console=console, refresh_per_second=_REFRESHES_PER_SECOND, transient=True):
        yield
