"""The tables of benchmarks/allocation.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import results

from fedhq_lightning.experiments.cells import Cell
from fedhq_lightning.experiments.comparison import Kept
from fedhq_lightning.experiments.outcomes import Outcome, straggler_bound
from fedhq_lightning.experiments.statistics import Difference, Ratio, Spread, paired_difference

Settings = Sequence[Sequence[Outcome]]
"""What the cells of one or several settings came to."""
Value = Callable[[Outcome], float]


def with_pools(found: Mapping[str, Sequence[Outcome]]) -> dict[str, Settings]:
    """Each setting by itself, then several together, in italics: a seed then counts once, by its mean over them."""
    subsets = {
        "all": list(found),
        "alpha at most 0.3": [name for name in found if float(name.rpartition("-")[2]) <= 0.3],
        "3 and 2 bits": [name for name in found if not name.startswith("w4")],
    }
    pools: dict[str, Settings] = {}
    for label, names in subsets.items():
        group = [found[name] for name in names]
        if len(group) > 1 and group not in pools.values():
            pools[f"*{label}*"] = group
    return {name: [group] for name, group in found.items()} | pools


def spread_table(found: Mapping[str, Sequence[Outcome]], value: Value, allocators: Sequence[str]) -> str:
    """Settings down, allocators across: mean and standard deviation over the seeds."""
    names = [each.partition("=")[0] for each in allocators]
    rows = [
        [setting, *(_spread([value(each) for each in group if each.allocator == name]) for name in names)]
        for setting, group in found.items()
    ]
    return results.table(("scheme, alpha", *names), rows)


def _spread(values: Sequence[float]) -> str:
    found = Spread.of(values)
    return "" if not values else f"{found.mean:.1f}" + (f" ± {found.deviation:.1f}" if len(values) > 1 else "")


def wall_table(kept: Mapping[str, Kept], allocators: Sequence[str]) -> str:
    """Wall seconds of the runs, and what local fits take of them: mean and standard deviation over the seeds."""
    parts: dict[str, Callable[[Cell], float]] = {
        "whole runs": lambda cell: cell.rounds["total_wall_seconds"][-1],
        "local fits": lambda cell: sum(cell.rounds["fit_wall_seconds"]),
    }
    rows = []
    for setting, each in kept.items():
        for part, of in parts.items():
            values = ([of(cell) for cell in each.cells if cell.allocator == name] for name in allocators)
            rows.append([f"{setting}, {part}", *map(_spread, values)])
    return results.table(("scheme, alpha", *allocators), rows)


def difference_table(found: Mapping[str, Sequence[Outcome]], pairs: Sequence[tuple[str, str]]) -> str:
    """One allocator less another, at equal virtual time; and hybrid less coarse, or less all-PTQ, at the end."""
    other = "coarse" if any("coarse" in pair for pair in pairs) else "all-ptq"
    rows = []
    for label, settings in with_pools(found).items():
        cells = [points(difference(settings, *pair, lambda each: each.metric_at)) for pair in pairs]
        rows.append([label, *cells, points(difference(settings, "hybrid", other, lambda each: each.metric))])
    columns = [f"{first} - {second}" for first, second in pairs]
    return results.table(("scheme, alpha", *columns, f"hybrid - {other}, end"), rows)


def time_table(found: Mapping[str, Sequence[Outcome]], kept: Mapping[str, Kept], tells_wall: bool) -> str:
    """The whole system, and beside it all-PTQ; the allocation alone, and the fine adjustment; the kernels alone."""
    pairs = {
        "hybrid / fake": ("hybrid", "all-qat-fake"),
        "all-PTQ / fake": ("all-ptq", "all-qat-fake"),
        "hybrid / all-QAT": ("hybrid", "all-qat"),
        "hybrid / coarse": ("hybrid", "coarse"),
    }
    on_the_wall = {name: pairs[name] for name in ("hybrid / fake", "all-PTQ / fake")}
    on_the_wall["all-QAT / fake"] = ("all-qat", "all-qat-fake")
    rows = []
    for label, settings in with_pools(found).items():
        cells = kept[label].cells if label in kept else []
        row = {"scheme, alpha": label}
        row |= {name: share(ratio(settings, *pair, "virtual")) for name, pair in pairs.items()}
        row |= {"bound, fake": bound(cells, "all-qat-fake"), "bound": bound(cells, "all-qat")}
        if tells_wall:
            row |= {f"{name}, wall": share(ratio(settings, *pair, "wall")) for name, pair in on_the_wall.items()}
        rows.append(row)
    return results.table(list(rows[0]), [list(row.values()) for row in rows])


def difference(settings: Settings, first: str, second: str, value: Value) -> Difference:
    """The first less the second, over the seeds that both have in every setting; of a seed the mean over settings."""
    pairs = [_pairs(group, first, second) for group in settings]
    seeds = [seed for seed in pairs[0] if all(seed in each for each in pairs)]
    return paired_difference(
        [fmean(value(each[seed][0]) for each in pairs) for seed in seeds],
        [fmean(value(each[seed][1]) for each in pairs) for seed in seeds],
    )


def ratio(settings: Settings, first: str, second: str, clock: str) -> Ratio | None:
    """Time to target of the first over the second's; a seed's value is its geometric mean over the settings.

    Args:
        settings: What is compared.
        first: Name of an allocator.
        second: Another.
        clock: "virtual" or "wall".

    Returns:
        With `count` the pairs in which both reached it, however many a seed has; None where nobody had a target.
    """
    logs: dict[int, list[float]] = {}
    counts = {"both": 0, "not the first": 0, "not the second": 0}
    for group in settings:
        for seed, pair in _pairs(group, first, second).items():
            found = [each.virtual_to_target if clock == "virtual" else each.wall_to_target for each in pair]
            if found[0] is None or found[1] is None:
                continue
            if found[0].is_censored or found[1].is_censored:
                counts["not the first" if found[0].is_censored else "not the second"] += 1
            else:
                counts["both"] += 1
                logs.setdefault(seed, []).append(math.log(found[0].seconds / found[1].seconds))
    if not any(counts.values()):
        return None
    mean = paired_difference([fmean(each) for each in logs.values()], [0.0] * len(logs))
    return Ratio(math.exp(mean.mean), math.exp(mean.low), math.exp(mean.high), *counts.values())


def _pairs(group: Sequence[Outcome], first: str, second: str) -> dict[int, tuple[Outcome, Outcome]]:
    """By seed, where both are there."""
    by_name = {name: {each.seed: each for each in group if each.allocator == name} for name in (first, second)}
    return {seed: (own, by_name[second][seed]) for seed, own in by_name[first].items() if seed in by_name[second]}


def bound(cells: Sequence[Cell], against: str) -> str:
    """The straggler's t_ptq over its t_qat; empty where it cannot be told."""
    found = straggler_bound(cells, [against])
    return f"{1 / found.mean:.2f}" if found else ""


def points(difference: Difference) -> str:
    """In points of a hundred."""
    if not difference.count:
        return ""
    if math.isnan(difference.low):
        return f"{100 * difference.mean:+.1f}"
    text = f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"**{text}**" if difference.is_beyond_noise else text


def share(ratio: Ratio | None) -> str:
    """A ratio with its interval and how many pairs it is of."""
    if ratio is None:
        return ""
    pairs = ratio.count + ratio.first_censored + ratio.second_censored
    of = f" ({ratio.count} of {pairs})"
    if math.isnan(ratio.mean):
        return f"-{of}"
    interval = "" if math.isnan(ratio.low) else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.mean:.2f}{interval}{of if ratio.count < pairs else ''}"
