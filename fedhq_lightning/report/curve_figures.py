"""The report's pictures of values over rounds and time, as inline SVG; drawn on `canvas`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedhq_lightning.report.picture_style import COLOURS, page_svg, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = {
    "quantized": ("-", "s"),
    "fp": ("--", "o"),
    "upload": ("-", "s"),
    "download": ("--", "o"),
    "text": ("-.", "^"),
}
_MOST_MARKERS = 30
_FEWEST_TO_BREAK = 6


@dataclass(frozen=True)
class Curve:
    """One line of a picture; points whose y is None or not finite are not drawn.

    Attributes:
        label: Its name in the legend.
        look: Which of the page's colours, and which line and marker.
        x: Positions.
        y: Values, one a position.
    """

    label: str
    look: Literal["quantized", "fp", "upload", "download", "text"]
    x: Sequence[float]
    y: Sequence[float | None]


def time_unit(longest_seconds: float) -> tuple[float, str]:
    """Seconds in the unit that suits the longest duration on an axis, and its name."""
    for shortest, size, unit in ((172800.0, 86400.0, "days"), (7200.0, 3600.0, "h"), (120.0, 60.0, "min")):
        if longest_seconds >= shortest:
            return size, unit
    return (0.001, "ms") if 0 < longest_seconds < 1 else (1.0, "s")


def curves_svg(
    name: str,
    description: str,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    ringed: tuple[float, float, str] | None = None,
    second_axis: tuple[str, Sequence[float]] | None = None,
) -> str:
    """Lines over one axis, above each other in two scales where one would hide the later half (`scaled_axes`).

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        curves: The lines.
        x_label: Label of the horizontal axis, with its unit.
        y_label: Label of the vertical axis, with its unit.
        ringed: A point (x, y) to point out, and what it is called in the legend.
        second_axis: Label of a second horizontal axis, at the top, and its value at each of the first curve's x.

    Returns:
        An `<svg>` element.
    """

    def draw(canvas: "Figure") -> list[Any]:
        panels, named = scaled_axes(canvas, [curve.y for curve in curves])
        for axes in panels:
            for curve in curves:
                _draw_curve(axes, curve)
            if ringed is not None and axes.get_ylim()[0] <= ringed[1] <= axes.get_ylim()[1]:
                _draw_ring(axes, *ringed)
        if second_axis is not None:
            _draw_second_axis(panels[0], *second_axis, curves[0].x)
        panels[-1].set_xlabel(x_label)
        named.set_ylabel(y_label)
        if x_label == "round":
            panels[-1].xaxis.set_major_locator(whole_numbers())
        found = [axes.get_legend_handles_labels() for axes in panels]
        return list({label: key for keys, labels in found for key, label in zip(keys, labels, strict=True)}.values())

    return page_svg(name, description, draw, height_inches=2.8 if second_axis is None else 3.2)


def scaled_axes(
    canvas: "Figure", values: Sequence[Sequence[float | None]], num_evaluations: int = 0
) -> "tuple[list[Axes], Axes]":
    """Axes on which the second half of each line can be told apart.

    Where the first half would flatten it, the range of the values is broken in two: a tall panel for the second half's
    and a low one for the rest, each with a scale of its own.

    Args:
        canvas: A fresh figure.
        values: Of each line, in order.
        num_evaluations: As for `broken_at`.

    Returns:
        The panels from top to bottom, to draw every line on; and the one that is labelled.
    """
    from matplotlib.ticker import MaxNLocator

    limits = broken_at(values, num_evaluations)
    if limits is None:
        axes = canvas.subplots()
        return [axes], axes
    every = [value for line in values for value in line if value is not None and math.isfinite(value)]
    is_below = min(every) < limits[0]
    top, bottom = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 1) if is_below else (1, 3))
    late, early = (top, bottom) if is_below else (bottom, top)
    margin = 0.04 * (max(every) - min(every))
    late.set_ylim(*limits)
    early.set_ylim(*((min(every) - margin, limits[0]) if is_below else (limits[1], max(every) + margin)))
    early.yaxis.set_major_locator(MaxNLocator(nbins=2, prune="upper" if is_below else "lower"))
    top.spines["bottom"].set_visible(False)
    top.tick_params(axis="x", length=0)
    text = COLOURS["text"]
    slash: dict[str, Any] = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 8, "linestyle": "none", "clip_on": False}
    for axes, edge in ((top, 0.0), (bottom, 1.0)):
        axes.plot([0], [edge], transform=axes.transAxes, color=text, markeredgecolor=text, **slash)
    return [top, bottom], late


def broken_at(values: Sequence[Sequence[float | None]], num_evaluations: int = 0) -> tuple[float, float] | None:
    """Lowest and highest value of the tall panel where `scaled_axes` breaks the range in two; else None.

    It does not for a few points, nor where there would be a rest on both sides.

    Args:
        values: Of each line, in order.
        num_evaluations: Behind the longest line, where it is not as many as it has values; 0 where it is.
    """
    limits = enlarged(values)
    if limits is None or (num_evaluations or max(map(len, values))) < _FEWEST_TO_BREAK:
        return None
    every = [value for line in values for value in line if value is not None and math.isfinite(value)]
    return None if (min(every) < limits[0]) == (max(every) > limits[1]) else limits


def enlarged(values: Sequence[Sequence[float | None]]) -> tuple[float, float] | None:
    """Lowest and highest value to be seen so that the second half of each line fills the picture.

    Args:
        values: Of each line, in order.

    Returns:
        Limits with a margin; None where they would show no more than the whole lines do.
    """
    late = [value for line in values for value in line[len(line) // 2 :] if value is not None and math.isfinite(value)]
    every = [value for line in values for value in line if value is not None and math.isfinite(value)]
    if not late or max(late) == min(late) or max(late) - min(late) > 0.5 * (max(every) - min(every)):
        return None
    margin = 0.08 * (max(late) - min(late))
    return min(late) - margin, max(late) + margin


def difference_svg(name: str, description: str, x: Sequence[float], y: Sequence[float], y_label: str) -> str:
    """Bars up and down from zero, one a round: what is too small to be seen between two lines.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        x: Rounds.
        y: Finite differences, one a round.
        y_label: Label of the vertical axis.

    Returns:
        An `<svg>` element.
    """

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        axes.vlines(x, 0.0, y, color=COLOURS["quantized"], linewidth=max(0.8, min(5.0, 120.0 / max(len(x), 1))))
        axes.axhline(0.0, color=COLOURS["text"], linewidth=0.9)
        if y and not any(y):
            axes.set_ylim(-1.0, 1.0)
        axes.set_xlabel("round")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(whole_numbers())
        return []

    return page_svg(name, description, draw, height_inches=2.8)


def _draw_curve(axes: "Axes", curve: Curve) -> None:
    line, marker = _LOOKS[curve.look]
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y is not None]
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        line,
        marker=marker if len(points) <= _MOST_MARKERS else None,
        color=COLOURS[curve.look],
        label=curve.label,
    )


def _draw_second_axis(axes: "Axes", label: str, values: Sequence[float], positions: Sequence[float]) -> None:
    """Round numbers of `values`, each above the position where it was reached."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    ticks = [tick for tick in MaxNLocator(nbins=6).tick_values(0.0, values[-1]) if 0 <= tick <= values[-1]]
    second = axes.secondary_xaxis("top")
    second.set_xticks(np.interp(ticks, values, positions), [f"{tick:g}" for tick in ticks])
    second.set_xlabel(label)


def _draw_ring(axes: "Axes", x: float, y: float, label: str) -> None:
    if not math.isfinite(y):
        return
    text = COLOURS["text"]
    look: dict[str, Any] = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": text, "linestyle": "none"}
    axes.plot([x], [y], marker="o", label=label, zorder=5, markeredgewidth=1.4, **look)
