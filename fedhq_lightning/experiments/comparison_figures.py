"""Pictures of a comparison as SVG files. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedhq_lightning.experiments.cells import Cell
from fedhq_lightning.experiments.outcomes import Outcome
from fedhq_lightning.experiments.statistics import value_at
from fedhq_lightning.report.curve_figures import time_unit
from fedhq_lightning.report.picture_style import own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 90
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedhq compare",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def curves_svg(cells: Sequence[Cell]) -> str:
    """Quantized metric over virtual time: mean over the seeds, three evaluations each, and from least to largest.

    A line ends where the first of its seeds does.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.allocator, []).append(cell)
    size, unit = time_unit(max(float(cell.summary["virtual_seconds"]) for cell in cells))

    def draw(axes: Axes) -> None:
        for number, (name, members) in enumerate(groups.items()):
            end = min(float(cell.summary["virtual_seconds"]) for cell in members)
            times = [end * step / _POINTS for step in range(_POINTS + 1)]
            values = [[value_at(*cell.curve("virtual"), time) for cell in members] for time in times]
            shown = [time / size for time in times]
            line = ("-", "--", ":")[number // 10 % 3]
            means = [fmean(each) for each in values]
            axes.plot(shown, means, label=name, drawstyle="steps-post", color=_colour(number), linestyle=line)
            if len(members) > 1:
                low, high = [min(each) for each in values], [max(each) for each in values]
                axes.fill_between(shown, low, high, step="post", alpha=0.12, color=_colour(number), linewidth=0)
        axes.set_xlabel(f"virtual time ({unit})")
        axes.set_ylabel(f"quantized {cells[0].metric_name}")
        axes.legend(loc="best", fontsize=8)

    return _svg(draw, height_inches=4.2)


def time_to_target_svg(found: Sequence[Outcome]) -> str:
    """Virtual time to the target: a point a seed, an arrow where it was not reached; empty text without a target."""
    durations = [(each.allocator, each.virtual_to_target) for each in found if each.virtual_to_target is not None]
    if not durations:
        return ""
    names = list(dict.fromkeys(name for name, _ in durations))
    size, unit = time_unit(max(duration.seconds for _, duration in durations))

    def draw(axes: Axes) -> None:
        for name, duration in durations:
            row = names.index(name)
            marker, face = (">", "none") if duration.is_censored else ("o", _colour(row))
            axes.plot(
                duration.seconds / size, row, marker, markerfacecolor=face, markeredgecolor=_colour(row), linestyle=""
            )
        for row, name in enumerate(names):
            seconds = [duration.seconds for other, duration in durations if other == name]
            axes.plot([fmean(seconds) / size] * 2, [row - 0.3, row + 0.3], color=_colour(row), linewidth=2)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel(f"virtual time to target ({unit}); bar: mean; arrow: not reached until then")

    return _svg(draw, height_inches=1.0 + 0.32 * len(names))


def _colour(number: int) -> str:
    return f"C{number % 10}"


def _svg(draw: Callable[[Axes], None], height_inches: float) -> str:
    file = io.StringIO()
    with own_style(_STYLE):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.0, height_inches), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        # Without dates and random ids the same cells give the same bytes.
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return file.getvalue()
