"""The table that ends a run on the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedhq_lightning.report.formats import (
    TIER_HEADER,
    file_sizes,
    format_bytes,
    format_seconds,
    speed_text,
    summary_rows,
    tier_rows,
)
from fedhq_lightning.run.records import RoundRecord, tier_figures
from fedhq_lightning.support.terminal import Terminal

_WIDER_THAN_ANY = 10_000
"""Characters: a line of a file is never broken."""
_TIERS_TITLE = "Tiers; virtual times, means of one local fit"


def on_terminal(console: Console) -> bool:
    """Whether someone watches a terminal that can redraw; FORCE_COLOR alone does not make a log file one."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


def _tiers(summary: Mapping[str, Any], rounds: Iterable[RoundRecord]) -> list[tuple[str, ...]]:
    tiers = summary.get("tiers")
    return tier_rows(tier_figures(rounds) if tiers is None else tiers)


def _heading(summary: Mapping[str, Any]) -> str:
    return " ".join(str(summary[key]) for key in ("recipe", "run_dir") if summary.get(key)) or "run"


def inference_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line on inference.

    Args:
        summary: What `summary.json` holds.

    Returns:
        The size, and a line for each batch size; nothing where it was not measured.
    """
    inference = summary.get("inference")
    if not inference:
        return []
    sizes = ", ".join(f"{name} {format_bytes(size)}" for name, size in file_sizes(summary).items())
    fp32, packed = (format_bytes(inference[key]) for key in ("fp32_bytes", "packed_bytes"))
    rows = [("size of the model", f"{sizes}, fp32 {fp32} (packed to the scheme's bits: {packed})")]
    for size, times in inference["batch_sizes"].items():
        int8, fp32 = (format_seconds(times[f"{kind}_ms"] / 1e3) for kind in ("int8", "fp32"))
        who = [times.get(kind, kind) for kind in ("int8", "fp32")]
        text = f"{who[0]} {int8}, {who[1]} {fp32} wall; int8 is {speed_text(times['speedup'])}"
        rows.append((f"inference, batch of {size}", text))
    return rows


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All lines, those on inference below the deployable model's."""
    rows = summary_rows(summary)
    labels = [label for label, _ in rows]
    place = labels.index("deployable model") + 1 if "deployable model" in labels else len(rows)
    return [*rows[:place], *inference_rows(summary), *rows[place:]]


def final_table(summary: Mapping[str, Any], rounds: Iterable[RoundRecord] = ()) -> RenderableType:
    """The run's result as rich tables.

    Args:
        summary: What `summary.json` holds.
        rounds: The run's records; read only where the summary has no `tiers`.

    Returns:
        A summary table and, where clients took part, a table of tiers.
    """
    table = Table(title=Text(_heading(summary)), box=box.SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for position, (label, text) in enumerate(_rows(summary)):
        table.add_row(Text(label), Text(text, style="bold green" if position == 0 else ""))
    rows = _tiers(summary, rounds)
    if not rows:
        return table
    tiers = Table(title=_TIERS_TITLE, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, padding=(0, 1, 0, 0))
    # Seven columns in 80 characters: the title says which clock, and modes stand below each other.
    for column in TIER_HEADER:
        name = (
            column.removesuffix(", virtual").replace("fits by mode", "fits by\nmode").replace("left out", "left\nout")
        )
        justify: Literal["left", "right"] = "left" if name.startswith(("tier", "fits")) else "right"
        tiers.add_column(name, justify=justify, overflow="fold", no_wrap=name != "tier")
    for row in rows:
        tiers.add_row(*(Text(cell.replace(", ", "\n") if index == 2 else cell) for index, cell in enumerate(row)))
    return Group(table, tiers)


def final_text(summary: Mapping[str, Any], rounds: Iterable[RoundRecord] = ()) -> str:
    """The final table as aligned plain text, for a log file or a pipe; arguments as for `final_table`."""
    lines = [_heading(summary), *aligned(_rows(summary))]
    if rows := _tiers(summary, rounds):
        lines += [_TIERS_TITLE.lower(), *aligned([TIER_HEADER, *rows])]
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]], num_left: int | None = None) -> list[str]:
    """Lines of a table as plain text, for a log file or a pipe: columns two spaces apart, each line indented by two.

    Args:
        rows: Cells, as many in each.
        num_left: Columns that begin at their left edge; those after them, but for the last, end at their right edge.
            None is all of them.
    """
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    last = len(rows[0]) - 1
    for index in range(last + 1):
        table.add_column(justify="left" if num_left is None or index < num_left or index == last else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    wide = Terminal(file=StringIO(), width=_WIDER_THAN_ANY, color_system=None, legacy_windows=False)
    with wide.capture() as captured:
        wide.print(table, no_wrap=True)
    return [f"  {line.rstrip()}" for line in captured.get().splitlines()]


def print_final(summary: Mapping[str, Any], rounds: Iterable[RoundRecord] = (), console: Console | None = None) -> None:
    """Print the result: tables on a terminal (NO_COLOR is respected), plain aligned text elsewhere."""
    console = console or Terminal()
    if on_terminal(console):
        console.print(final_table(summary, rounds))
    else:
        console.print(final_text(summary, rounds), markup=False, highlight=False, emoji=False, soft_wrap=True)
