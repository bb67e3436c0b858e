"""What the terminal shows of an allocator's plan before round 1: a table of tiers and a sentence."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedhq_lightning.allocation.briefing import Briefing
from fedhq_lightning.report.final_table import aligned
from fedhq_lightning.report.formats import format_seconds

_HEADER = ("tier", "clients", "round in PTQ", "round in QAT", "train in QAT")
_TITLE = "Tiers, with virtual times of one round, medians"
_MOST_TIERS = 6


def briefing_table(briefing: Briefing) -> RenderableType:
    """For a terminal."""
    table = Table(title=_TITLE, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, padding=(0, 1, 0, 0))
    for column in _HEADER:
        table.add_column(column, justify="left" if column == "tier" else "right", overflow="fold")
    for row in _rows(briefing):
        table.add_row(*map(Text, row))
    return Group(table, Text(f"{_sentence(briefing)}\n"))


def briefing_text(briefing: Briefing) -> str:
    """For a log file or a pipe."""
    lines = aligned([_HEADER, *_rows(briefing)], num_left=1)
    return "\n".join([_TITLE.lower(), *lines, _sentence(briefing)])


def _rows(briefing: Briefing) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            each.tier,
            f"{each.clients:,}",
            format_seconds(each.ptq_seconds),
            format_seconds(each.qat_seconds),
            "all" if each.in_qat == each.clients else f"{each.in_qat:,}",
        )
        for each in briefing.tiers[:_MOST_TIERS]
    ]
    if left := briefing.tiers[_MOST_TIERS:]:
        rows.append((f"{len(left)} faster ones", f"{sum(each.clients for each in left):,}", "", "", ""))
    return rows


def _sentence(briefing: Briefing) -> str:
    length = f"Rounds take {format_seconds(briefing.round_seconds)} virtual"
    if not briefing.rounds_wait:
        length = f"No round waits, and clients take {format_seconds(briefing.round_seconds)} virtual"
    if briefing.in_qat == 0:
        return f"{length}, in which nobody can take enough steps in QAT; the report tells why."
    return f"{length}; QAT begins {briefing.begins}, for {briefing.in_qat:.0%} of their clients; the report tells why."
