"""Pictures of what stands side by side, for a page or as files: lines over a clock, times to a target, fits, bytes."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from fedhq_lightning.experiments.cells import Cell
from fedhq_lightning.experiments.outcomes import Outcome
from fedhq_lightning.experiments.side_by_side import Line, entries_of, quantized_name
from fedhq_lightning.report.curve_figures import scaled_axes, time_unit
from fedhq_lightning.report.formats import MODE_NAMES
from fedhq_lightning.report.model_figures import byte_unit
from fedhq_lightning.report.picture_style import (
    COLOURS,
    MODE_COLOURS,
    RUN_COLOURS,
    file_svg,
    page_svg,
    whole_numbers,
)
from fedhq_lightning.types import MODES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_FILE_INCHES = 7.0
_FILE_LETTERS, _PAGE_LETTERS = 84, 52
"""Of a line of the legend."""
_LETTERS_BESIDE_BARS = 28
_PLAIN_ROW = 0.25
"""Inches of a row of bars whose label has one line."""


def lines_svg(
    name: str,
    description: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    target: float | None = None,
    as_file: bool = False,
) -> str:
    """Each in its colour and with its marker: quantized solid and filled, fp dashed and thin, a band in steps.

    None hides another: an earlier line is wider, so that it shows on both sides of a later one, their markers stand at
    other places, and means have a dash each. The vertical axis is broken as in `scaled_axes`.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        lines: In the order of the page.
        x_label: Label of the horizontal axis, with its unit.
        y_label: Label of the vertical axis.
        target: A value to be marked across the picture.
        as_file: Whether it is a file of its own.

    Returns:
        An `<svg>` element, or the file's content.
    """

    def draw(canvas: "Figure") -> list[Any]:
        values = [values for line in lines for values in (line.quantized[1], line.fp[1])]
        panels, named = scaled_axes(canvas, values, max((each.num_evaluations or 0 for each in lines), default=0))
        for axes in panels:
            keys = [_draw_line(axes, number, line, len(lines)) for number, line in enumerate(lines)]
            if target is not None:
                keys.append(_draw_target(axes, target))
        panels[-1].set_xlabel(x_label)
        named.set_ylabel(y_label)
        if x_label == "round":
            panels[-1].xaxis.set_major_locator(whole_numbers())
        return keys

    columns = _legend_columns([line.label for line in lines], _FILE_LETTERS if as_file else _PAGE_LETTERS)
    rows = -(-(len(lines) + (target is not None)) // columns)
    if as_file:
        return file_svg(name, description, draw, (_FILE_INCHES, 4.0 + 0.2 * rows), legend_columns=columns)
    return page_svg(name, description, draw, 2.8 + 0.2 * rows, legend_columns=columns)


def _legend_columns(labels: Sequence[str], letters: int) -> int:
    """As many as have room beside each other; a key before its label takes six letters."""
    return max(1, min(4, letters // (6 + max(map(len, labels), default=1))))


def _draw_line(axes: "Axes", number: int, line: Line, num_lines: int) -> Any:
    """Draw it; its key in the legend."""
    from matplotlib.lines import Line2D

    width = 1.3 + 2.0 * (num_lines - 1 - number) / max(num_lines - 1, 4)
    look: dict[str, Any] = {"color": _colour(number), "marker": _MARKERS[number % len(_MARKERS)]}
    if line.is_mean:
        dash: Any = _DASHES[number % len(_DASHES)]
        every = _marked(number, num_lines, len(line.quantized[0]))
        axes.plot(*line.quantized, linestyle=dash, drawstyle="steps-post", linewidth=width, markevery=every, **look)
        if line.band is not None:
            axes.fill_between(line.quantized[0], *line.band, step="post", alpha=0.13, linewidth=0, color=look["color"])
        return Line2D([], [], label=line.label, linestyle=dash, linewidth=width, **look)
    for (x, y), fp_dash in ((line.quantized, "-"), (line.fp, "--")):
        if not x:
            continue
        style: dict[str, Any] = {"linewidth": width}
        if fp_dash == "--":
            style = {"linewidth": 1.0, "markerfacecolor": "none"}
        axes.plot(x, y, fp_dash, markevery=_marked(number, num_lines, len(x)), **look, **style)
    return Line2D([], [], label=line.label, linestyle="-" if line.quantized[0] else "--", **look)


def _marked(number: int, num_lines: int, num_points: int) -> tuple[int, int]:
    """The first point of a line that has a marker, and how far it is to the next: other places for each line."""
    step = max(1, num_points // 6)
    return number * step // max(num_lines, 1), step


def _draw_target(axes: "Axes", target: float) -> Any:
    from matplotlib.lines import Line2D

    text = COLOURS["text"]
    axes.axhline(target, color=text, linewidth=0.9, linestyle=":")
    return Line2D([], [], label="worst final", color=text, linewidth=0.9, linestyle=":")


def _colour(number: int) -> str:
    return COLOURS[f"run-{number % len(RUN_COLOURS)}"]


def _broken(labels: Sequence[str]) -> tuple[list[str], float]:
    """Labels beside bars in lines that leave room for the bars, and the inches that a row of them takes."""
    lines = [wrap(label, _LETTERS_BESIDE_BARS, break_on_hyphens=False) for label in labels]
    most = max(map(len, lines), default=1)
    return ["\n".join(each) for each in lines], max(_PLAIN_ROW, 0.15 * most + 0.06)


def curves_svg(cells: Sequence[Cell]) -> str:
    """A file: quantized metric over virtual time; mean over the seeds, three evaluations each, and least to largest.

    A line ends where the first of its seeds does.
    """
    lines = [entry.line("virtual") for entry in entries_of(cells)]
    size, unit = time_unit(max(line.end for line in lines))
    metric = quantized_name(cells)
    names = ", ".join(line.label for line in lines)
    return lines_svg(
        "metric-over-time",
        f"Line plot: {metric} by virtual time of {names}; means over the seeds, and from least to largest",
        [line.scaled(size) for line in lines],
        f"virtual time ({unit})",
        metric,
        as_file=True,
    )


def time_to_target_svg(found: Sequence[Outcome], as_file: bool = True) -> str:
    """Virtual time to the target: a point a seed, an arrow where it was not reached; empty text without a target."""
    durations = [(each.name, each.virtual_to_target) for each in found if each.virtual_to_target is not None]
    if not durations:
        return ""
    names = list(dict.fromkeys(name for name, _ in durations))
    size, unit = time_unit(max(duration.seconds for _, duration in durations))
    labels, inches = _broken(names)

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        for row, name in enumerate(names):
            own = [duration for other, duration in durations if other == name]
            colour = _colour(row)
            for duration in own:
                marker, face = (">", "none") if duration.is_censored else ("o", colour)
                look: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": colour, "linestyle": ""}
                axes.plot(duration.seconds / size, row, marker, markersize=6, **look)
            mean = fmean(duration.seconds for duration in own) / size
            axes.plot([mean, mean], [row - 0.3, row + 0.3], color=colour, linewidth=2)
        axes.set_yticks(range(len(names)), labels, fontsize=8 if inches > _PLAIN_ROW else None)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.05 * max(duration.seconds for _, duration in durations) / size)
        key = "; bar: mean; arrow: not reached until then" if as_file else ""
        axes.set_xlabel(f"virtual time to target ({unit}){key}")
        return []

    description = (
        f"Virtual time to the target of {', '.join(names)}. Point: a seed; arrow: not reached until then; bar: mean."
    )
    height = 1.0 + max(0.32, inches) * len(names)
    if as_file:
        return file_svg("time-to-target", description, draw, (_FILE_INCHES, height))
    return page_svg("time-to-target", description, draw, height)


def modes_svg(
    name: str, description: str, what: str, labels: Sequence[str], counts: Sequence[Mapping[str, int]]
) -> str:
    """One bar each, its local fits split by mode; `what` they are, `labels` and `counts` from top to bottom."""
    shown, inches = _broken(labels)

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        start = [0] * len(labels)
        for mode in MODES:
            values = [int(each.get(mode, 0)) for each in counts]
            if any(values):
                look: dict[str, Any] = {"color": MODE_COLOURS[mode], "label": MODE_NAMES[mode]}
                axes.barh(range(len(labels)), values, left=start, height=0.65, **look)
            start = [before + value for before, value in zip(start, values, strict=True)]
        axes.set_yticks(range(len(labels)), shown, fontsize=8 if inches > _PLAIN_ROW else None)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_ylabel(what)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("local fits")
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=1.2 + inches * max(len(labels), 2))


def bytes_svg(
    name: str, description: str, what: str, labels: Sequence[str], up: Sequence[int], down: Sequence[int]
) -> str:
    """Two bars each, bytes up and bytes down; as in `modes_svg`."""
    shown, inches = _broken(labels)
    size, unit = byte_unit(max((*up, *down), default=0))

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        for label, counts, offset, colour in (("up", up, -0.2, "upload"), ("down", down, 0.2, "download")):
            places = [row + offset for row in range(len(labels))]
            axes.barh(places, [count / size for count in counts], height=0.36, color=COLOURS[colour], label=label)
        axes.set_yticks(range(len(labels)), shown, fontsize=8 if inches > _PLAIN_ROW else None)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_ylabel(what)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=1.2 + inches * max(len(labels), 2))
