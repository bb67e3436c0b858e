"""The study's picture: the Pareto front, or the values over the trials; a file of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedhq_lightning.experiments.objectives import Objective
from fedhq_lightning.report.curve_figures import time_unit
from fedhq_lightning.report.model_figures import byte_unit
from fedhq_lightning.report.picture_style import COLOURS, file_svg, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NUMBERS = 12
"""Points of the front that are labelled; more would run into each other."""


@dataclass(frozen=True)
class Point:
    """One complete trial.

    Attributes:
        number: The trial's.
        values: The objectives'.
        is_best: On the Pareto front; with one objective, the best so far.
    """

    number: int
    values: Sequence[float]
    is_best: bool


def study_svg(objectives: Sequence[Objective], points: Sequence[Point]) -> str:
    """The picture as a whole SVG file, the same bytes for the same trials.

    Args:
        objectives: With one, its value over the trials is drawn; with several, the first over each of the others.
        points: The complete trials, at least one.
    """
    best = [str(point.number) for point in points if point.is_best]
    if len(objectives) == 1:
        return file_svg(
            "history",
            f"{objectives[0].name} of {len(points)} trials; trials {', '.join(best)} were the best so far",
            lambda figure: _draw_history(figure.subplots(), objectives[0], points),
            (5.5, 3.4),
        )

    def draw(figure: Figure) -> list[Any]:
        panels = figure.subplots(len(objectives) - 1, squeeze=False)[:, 0]
        keys = [_draw_front(axes, objectives, points, other) for other, axes in enumerate(panels, start=1)]
        return keys[0]

    others = " and ".join(each.name for each in objectives[1:])
    description = f"{objectives[0].name} over {others} of {len(points)} trials; Pareto front: trials {', '.join(best)}"
    return file_svg("pareto", description, draw, (5.5, 0.4 + 3.0 * (len(objectives) - 1)))


def _draw_history(axes: Axes, objective: Objective, points: Sequence[Point]) -> list[Any]:
    scale, label = _axis(objective.name, [point.values[0] for point in points])
    for is_best, line, colour, name in ((False, "o", "trial", "trial"), (True, "-s", "text", "best so far")):
        shown = [point for point in points if point.is_best is is_best]
        x, y = [point.number for point in shown], [point.values[0] / scale for point in shown]
        axes.plot(x, y, line, color=COLOURS[colour], label=name)
    axes.set_xlabel("trial")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(whole_numbers())
    return list(axes.get_legend_handles_labels()[0])


def _draw_front(axes: Axes, objectives: Sequence[Objective], points: Sequence[Point], other: int) -> list[Any]:
    """The first objective over another one."""
    x_scale, x_label = _axis(objectives[other].name, [point.values[other] for point in points])
    y_scale, y_label = _axis(objectives[0].name, [point.values[0] for point in points])

    def places(some: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [point.values[other] / x_scale for point in some], [point.values[0] / y_scale for point in some]

    front = sorted((point for point in points if point.is_best), key=lambda point: point.values[other])
    axes.plot(*places([each for each in points if not each.is_best]), "o", color=COLOURS["trial"], label="trial")
    # With more than two objectives a front is no line in a picture of two of them.
    line = "-s" if len(objectives) == 2 else "s"
    axes.plot(*places(front), line, color=COLOURS["text"], label="Pareto front")
    for point in front[:: max(1, math.ceil(len(front) / _MOST_NUMBERS))]:
        x, y = places([point])
        axes.annotate(str(point.number), (x[0], y[0]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return list(axes.get_legend_handles_labels()[0])


def _axis(name: str, values: Sequence[float]) -> tuple[float, str]:
    """Scale and label with its unit."""
    largest = max(map(abs, values), default=0.0)
    words = name.replace("_", " ")
    if name.endswith("_seconds"):
        size, unit = time_unit(largest)
        return size, f"{words.removesuffix(' seconds')} time ({unit})"
    if name.endswith("_bytes"):
        size, unit = byte_unit(largest)
        return size, f"{words.removesuffix(' bytes')} ({unit})"
    return 1.0, words
