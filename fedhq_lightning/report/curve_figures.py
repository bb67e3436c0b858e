"""The report's pictures of values over rounds and time, as inline SVG; drawn on `canvas`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedhq_lightning.report.picture_style import COLOURS, page_svg, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = {"quantized": ("-", "s"), "fp": ("--", "o"), "upload": ("-", "s"), "download": ("--", "o")}
_MOST_MARKERS = 30


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
    look: Literal["quantized", "fp", "upload", "download"]
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
    y_limits: tuple[float, float] | None = None,
) -> str:
    """Lines over one axis.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        curves: The lines.
        x_label: Label of the horizontal axis, with its unit.
        y_label: Label of the vertical axis, with its unit.
        ringed: A point (x, y) to point out, and what it is called in the legend.
        y_limits: Lowest and highest value to be seen, all by default.

    Returns:
        An `<svg>` element.
    """

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        for curve in curves:
            _draw_curve(axes, curve)
        if ringed is not None:
            _draw_ring(axes, *ringed)
        if y_limits is not None:
            axes.set_ylim(*y_limits)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if x_label == "round":
            axes.xaxis.set_major_locator(whole_numbers())
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=2.8)


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


def _draw_ring(axes: "Axes", x: float, y: float, label: str) -> None:
    if not math.isfinite(y):
        return
    text = COLOURS["text"]
    look: dict[str, Any] = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": text, "linestyle": "none"}
    axes.plot([x], [y], marker="o", label=label, zorder=5, markeredgewidth=1.4, **look)
