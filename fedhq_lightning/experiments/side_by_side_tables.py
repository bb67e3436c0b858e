"""Results as tables: on the terminal, in Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedhq_lightning.experiments.outcomes import Outcome, Row
from fedhq_lightning.experiments.statistics import Difference, Duration, Ratio, Spread
from fedhq_lightning.report.final_table import aligned, on_terminal

_MISSING = "-"
_BASELINE = "baseline"
_LONGEST_IN_HEAD = 16
_LONGEST_WORD = 24
"""Of a name, which is not broken within where a terminal is narrow."""


@dataclass(frozen=True)
class TextTable:
    """A table of words.

    Attributes:
        title: What it shows.
        columns: Heads.
        rows: Cells, as many as columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def deployed_table(rows: Sequence[Row], deployed_on: str, metric_name: str, baseline: str, what: str) -> TextTable:
    """What a comparison came to: the deployed models, and the time that their runs took.

    Args:
        rows: One for each that is compared.
        deployed_on: What is told of them.
        metric_name: What chose their rounds.
        baseline: Whom differences are against.
        what: What the names are of.
    """
    columns = (what, "QAT", "quantized", f"less {_short(baseline)}", "fp", "virtual seconds", "wall seconds")
    cells = [
        [
            *(row.name, f"{row.qat_share.mean:.0%}", spread_text(row.deployed, metric_text)),
            _BASELINE if row.name == baseline else difference_text(row.deployed_difference),
            *(spread_text(row.deployed_fp, metric_text), spread_text(row.virtual_seconds, _seconds)),
            spread_text(row.wall_seconds, _seconds),
        ]
        for row in rows
    ]
    return TextTable(f"Deployed models: {deployed_on} of the round that {metric_name} chose", columns, cells)


def all_tables(
    rows: Sequence[Row], deployed_on: str, metric_name: str, baseline: str, what: str = "allocator"
) -> list[TextTable]:
    """The deployed models; quantized metric at equal virtual time and at the end; virtual and wall time to the target.

    Args:
        rows: One for each that is compared.
        deployed_on: What is told of the deployed models.
        metric_name: What is monitored.
        baseline: Whom differences and ratios are against.
        what: What the names are of.
    """
    quantized = f"Quantized {metric_name}"
    return [
        deployed_table(rows, deployed_on, metric_name, baseline, what),
        _metric_table(
            f"{quantized} at equal virtual time",
            *(rows, baseline, what),
            lambda row: (row.metric_at, row.metric_at_difference),
        ),
        _metric_table(f"{quantized} at the end", rows, baseline, what, lambda row: (row.metric, row.metric_difference)),
        _time_table(
            "virtual", rows, baseline, what, lambda row: (row.virtual_to_target, row.virtual_ratio, row.virtual_seconds)
        ),
        _time_table("wall", rows, baseline, what, lambda row: (row.wall_to_target, row.wall_ratio, row.wall_seconds)),
    ]


def _metric_table(
    title: str, rows: Sequence[Row], baseline: str, what: str, of: Callable[[Row], tuple[Spread, Difference]]
) -> TextTable:
    columns = (what, "QAT", "mean ± sd", f"less {_short(baseline)}", "p: t, rank")
    cells = []
    for row in rows:
        spread, difference = of(row)
        against = [_BASELINE, ""] if row.name == baseline else [difference_text(difference), _p(difference)]
        cells.append([row.name, f"{row.qat_share.mean:.0%}", spread_text(spread, metric_text), *against])
    return TextTable(title, columns, cells)


def _time_table(
    clock: str,
    rows: Sequence[Row],
    baseline: str,
    what: str,
    of: Callable[[Row], tuple[Spread | None, Ratio | None, Spread]],
) -> TextTable:
    columns = (what, "seconds", f"over {_short(baseline)}", "whole run", "MB up")
    cells = []
    for row in rows:
        reached, ratio, whole = of(row)
        against = _BASELINE if row.name == baseline else _ratio(ratio)
        megabytes = f"{row.uplink_bytes.mean / 1e6:.3g}"
        cells.append([row.name, _durations(reached), against, spread_text(whole, _seconds), megabytes])
    return TextTable(f"{clock.capitalize()} seconds to target", columns, cells)


def markdown(table: TextTable) -> str:
    """The table in Markdown, with its title before it."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return f"{table.title}.\n\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def print_table(table: TextTable, console: Console) -> None:
    """The table: drawn on a terminal, as plain aligned lines elsewhere."""
    if not on_terminal(console):
        lines = [table.title, *aligned([table.columns, *table.rows])]
        console.print("\n".join(lines), markup=False, highlight=False, emoji=False, soft_wrap=True)
        return
    console.print()
    drawn = Table(title=Text(table.title), box=box.SIMPLE_HEAD, title_justify="left", show_edge=False)
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    words = [len(word) for row in table.rows for word in row[0].split()]
    drawn.columns[0].min_width = min(_LONGEST_WORD, max(words, default=0))
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def cells_csv(outcomes: Sequence[Outcome]) -> str:
    """One line a cell; durations as seconds and whether they are censored, that is, lower bounds."""
    text = io.StringIO()
    records = [_flat(each) for each in outcomes]
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _flat(outcome: Outcome) -> dict[str, object]:
    record = asdict(outcome)
    for name in ("virtual_to_target", "wall_to_target"):
        duration: Duration | None = getattr(outcome, name)
        del record[name]
        record[f"{name}_seconds"] = None if duration is None else duration.seconds
        record[f"{name}_is_censored"] = None if duration is None else duration.is_censored
    return record


def _short(baseline: str) -> str:
    """What a head calls it: by its name where that is short; its row says that it is the baseline."""
    return baseline if len(baseline) <= _LONGEST_IN_HEAD else "baseline"


def spread_text(spread: Spread, show: Callable[[float], str]) -> str:
    """Mean and standard deviation of several values, as `show` writes each; of one, the value."""
    if math.isnan(spread.mean):
        return _MISSING
    return show(spread.mean) if spread.count < 2 else f"{show(spread.mean)} ± {show(spread.deviation)}"


def _durations(spread: Spread | None) -> str:
    if spread is None:
        return _MISSING
    if not spread.num_censored:
        return spread_text(spread, _seconds)
    return f"> {_seconds(spread.mean)} ({spread.count - spread.num_censored} of {spread.count})"


def difference_text(difference: Difference) -> str:
    """A mean difference and, where there is one, its interval."""
    if math.isnan(difference.mean):
        return _MISSING
    if math.isnan(difference.low):
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _p(difference: Difference) -> str:
    if math.isnan(difference.p_t):
        return _MISSING
    wilcoxon = _MISSING if math.isnan(difference.p_wilcoxon) else f"{difference.p_wilcoxon:.2g}"
    return f"{difference.p_t:.2g}, {wilcoxon}"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return _MISSING
    if math.isnan(ratio.mean):
        return _MISSING
    interval = "" if math.isnan(ratio.low) else f" [{ratio.low:.3g}, {ratio.high:.3g}]"
    left_out = ratio.first_censored + ratio.second_censored
    return f"{ratio.mean:.3g}{interval}" + (f" ({ratio.count} of {ratio.count + left_out})" if left_out else "")


def metric_text(value: float) -> str:
    """A metric's value."""
    return f"{value:.4f}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
