"""`fedhq compare`: run what is missing, then show, write and draw the results."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.experiments import outcomes, rounds_under_way, side_by_side_tables
from fedhq_lightning.experiments.answer import answer
from fedhq_lightning.experiments.cell_runs import CellJob
from fedhq_lightning.experiments.comparison import Compared, Comparison, Kept
from fedhq_lightning.experiments.side_by_side import what_is_compared
from fedhq_lightning.experiments.side_by_side_figures import curves_svg, time_to_target_svg
from fedhq_lightning.experiments.side_by_side_page import cells_page
from fedhq_lightning.experiments.variations import variations
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.report.final_table import on_terminal
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.extras import check_installed
from fedhq_lightning.support.quiet import say_line
from fedhq_lightning.support.terminal import Terminal
from fedhq_lightning.support.yaml_text import parse_yaml

DEFAULT_ALLOCATORS = ("all-ptq", "all-qat-fake", "all-qat", "free-qat", "hybrid")
"""Where nothing is said of what to compare."""


def compare_recipe(known: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run `fedhq compare` as the command line gave it.

    Args:
        known: Its own options.
        overrides: Values of the recipe.

    Raises:
        ConfigurationError: Something in them cannot work; what can be known is raised before the first run.
    """
    check_installed("fedhq compare", "scipy")  # for intervals and p values
    name, text = recipe_files.find(known.recipe)
    at = _number("at", known.at, smallest=0.0)
    target = _number("target", known.target)
    varied = variations(name, text, overrides, known.vary) if known.vary else []
    resolved = resolve(name, text, overrides)
    folder = known.folder or Path("comparisons") / name
    comparison = Comparison(
        name,
        resolved.recipe.text,
        known.allocators if known.allocators is not None else [] if varied else DEFAULT_ALLOCATORS,
        [_seed(each) for each in known.seeds],
        folder,
        known.reference,
        None if known.grid_seeds is None else [_seed(each) for each in known.grid_seeds],
        keeps_runs=not known.drop_runs,
        varied=varied,
    )
    workers, limit = _count("workers", known.workers), None if known.cells is None else _count("cells", known.cells)
    with resolved.keys_named():
        compared = Compared(comparison)
    names = compared.names
    if known.baseline is not None and known.baseline not in names:
        raise ConfigurationError(
            f"baseline {known.baseline!r}: compared are {_listed(names)}{nearest(known.baseline, names)}"
        )

    def on_end(job: CellJob, seconds: float, done: int, total: int) -> None:
        say_line(f"{job}: {seconds:.0f} s ({done} of {total})", sys.stdout)

    if missing := compared.kept().missing:
        at_once = f", {workers} at a time" if workers > 1 and len(missing) > 1 else ""
        runs = f"{len(missing)} run{'s' if len(missing) > 1 else ''} of {name}"
        say_line(f"{runs}: {_listed(names)}; seeds {', '.join(known.seeds)}{at_once}", sys.stdout)
    max_rounds = parse_yaml(resolved.recipe.text)["trainer"]["max_rounds"]
    try:
        with rounds_under_way.shown(compared.missing_runs(), max_rounds, Terminal()):
            compared.run(workers, limit, on_end)
    except KeyboardInterrupt as interruption:
        interruption.args = (f"; finished cells are in {folder}: the same command goes on from there",)
        raise
    kept = compared.kept()
    if kept.missing:
        more = f" and {len(kept.missing) - 3} more" if len(kept.missing) > 3 else ""
        say_line(f"not run yet: {'; '.join(kept.missing[:3])}{more}", sys.stdout)
    if kept.cells:
        write_results(kept, folder, at, target, known.baseline, Terminal())
    if best := compared.best_model():
        cell, model = best
        say_line(f"best run by {cell.metric_name}: {cell.name}, seed {cell.seed}; its model: {model}", sys.stdout)


def write_results(
    kept: Kept,
    folder: Path,
    at: float | None = None,
    target: float | None = None,
    baseline: str | None = None,
    console: Console | None = None,
) -> str:
    """Compare cells; write `comparison.html`, `table.md`, `cells.csv`, and as pictures what they came to over time.

    Args:
        kept: Cells, one at least.
        folder: Where the files go.
        at: As in `outcomes.outcomes`.
        target: Likewise.
        baseline: Whom differences are against; None for all-ptq, else all-qat, else the first.
        console: Where the tables are printed; None for nowhere.

    Returns:
        The content of `table.md`.
    """
    found = outcomes.outcomes(kept.cells, at, target)
    names = list(dict.fromkeys(each.name for each in found))
    if baseline is None or baseline not in names:
        baseline = outcomes.default_baseline(names)
    rows = outcomes.rows_of(found, baseline)
    shown = side_by_side_tables.all_tables(
        rows, found[0].deployed_on, kept.cells[0].metric_name, baseline, what_is_compared(kept.cells)
    )
    told = answer(rows, baseline, found[0].deployed_on, kept.cells[0].larger_is_better)
    remarks = _remarks(kept, found, at, target)
    tables = [side_by_side_tables.markdown(each) for each in shown]
    page = "\n".join([*([f"{told}\n"] if told else []), *tables, *(f"{remark}\n" for remark in remarks)])
    write_atomically(folder / "table.md", page)
    write_atomically(folder / "cells.csv", side_by_side_tables.cells_csv(found))
    write_atomically(folder / "comparison.html", cells_page(kept.cells, found, told, shown, remarks))
    written = ["comparison.html", "table.md", "cells.csv"]
    for name, picture in (("metric-over-time", curves_svg(kept.cells)), ("time-to-target", time_to_target_svg(found))):
        if picture:
            write_atomically(folder / f"{name}.svg", picture)
            written.append(f"{name}.svg")
    if console is not None:
        is_told_whole = len({each.seed for each in found}) > 1  # of one seed nothing can be told of differences
        for table in shown if is_told_whole else shown[:1]:
            side_by_side_tables.print_table(table, console)
        breaks = not on_terminal(console)
        for remark in remarks if is_told_whole else ():
            console.print(remark, markup=False, highlight=False, soft_wrap=breaks)
        if told:
            console.print(f"\n{told}\n", markup=False, highlight=False, soft_wrap=breaks, style="bold")
        console.print(f"{', '.join(written)} in {folder}", markup=False, highlight=False, soft_wrap=True)
    return page


def _remarks(kept: Kept, found: Sequence[outcomes.Outcome], at: float | None, target: float | None) -> list[str]:
    """What the tables mean: times, target, bound, and which boundary best-fixed stands for."""
    times = [each.at_seconds for each in found]
    equal = f"{at:,.6g}" if at is not None else f"those of the shortest run of the same seed, {_range(times)}"
    remarks = [f"Equal virtual time: {equal} virtual seconds. Metrics are means over three evaluations."]
    targets = [each.target for each in found if each.target is not None]
    if target is not None:
        remarks.append(f"Target: {target:g}.")
    elif targets:
        remarks.append(
            f"Target: half a point short of what {outcomes.target_from(kept.cells)} of the same seed had at its end, "
            f"{_range(targets)}."
        )
    else:
        remarks.append("No target: add all-qat-fake or all-qat, or give --target.")
    if bound := outcomes.straggler_bound(kept.cells):
        remarks.append(
            f"Bound: the straggler's round in QAT takes {bound.mean:.3g} times its round in PTQ (virtual, mean over "
            "rounds and seeds); no allocation can be faster than all-QAT by more."
        )
    if kept.best_fixed:
        remarks.append(f"best-fixed is {kept.best_fixed}, chosen on other seeds.")
    num_seeds = len({each.seed for each in found})
    remarks.append(
        f"Over {num_seeds} seed{'s' if num_seeds > 1 else ''}: mean and standard deviation, paired differences, "
        "geometric means of paired ratios, two-sided p of the paired t test and of Wilcoxon's signed ranks (from five "
        "seeds)."
    )
    remarks.append("'> x (k of n)': k of n seeds reached the target; x counts the others with their whole run.")
    remarks.append(
        "Wall seconds are of the rounds, evaluation included, on the host that ran the cells beside whatever else ran "
        "there."
    )
    return remarks


def _listed(names: Sequence[str]) -> str:
    return ("; " if any(", " in name for name in names) else ", ").join(names)


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.4g}" if low == high else f"{low:,.4g} to {high:,.4g}"


def _number(option: str, text: str | None, smallest: float = -math.inf) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= smallest):
        kind = "a number" if smallest == -math.inf else f"a number not below {smallest:g}"
        raise ConfigurationError(f"--{option} {text!r}: must be {kind}")
    return value


def _count(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"--{option} {text!r}: must be a whole number from 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise ConfigurationError(f"--seeds {text!r}: seeds are whole numbers from 0")
    return int(text)
