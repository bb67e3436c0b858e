"""Pictures of what stands side by side, for a page or as files: lines over a clock, times to a target, fits, bytes."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from fedhq_lightning.experiments.cells import Cell
from fedhq_lightning.experiments.outcomes import Outcome
from fedhq_lightning.experiments.side_by_side import Line, allocator_entries
from fedhq_lightning.report.curve_figures import time_unit
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
_DASHES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
_LEGEND_COLUMNS = 2
_FILE_LEGEND_COLUMNS = 4
_FILE_INCHES = 7.0


def lines_svg(
    name: str,
    description: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    target: float | None = None,
    y_limits: tuple[float, float] | None = None,
    as_file: bool = False,
) -> str:
    """Each in its colour and with its marker: quantized solid and filled, fp dashed and thin, a band in steps.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        lines: In the order of the page.
        x_label: Label of the horizontal axis, with its unit.
        y_label: Label of the vertical axis.
        target: A value to be marked across the picture.
        y_limits: Lowest and highest value to be seen, all by default.
        as_file: Whether it is a file of its own.

    Returns:
        An `<svg>` element, or the file's content.
    """

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        keys = [_draw_line(axes, number, line, len(lines)) for number, line in enumerate(lines)]
        if target is not None:
            keys.append(_draw_target(axes, target))
        if y_limits is not None:
            axes.set_ylim(*y_limits)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if x_label == "round":
            axes.xaxis.set_major_locator(whole_numbers())
        return keys

    if as_file:
        return file_svg(name, description, draw, (_FILE_INCHES, 4.2), legend_columns=_FILE_LEGEND_COLUMNS)
    rows = -(-(len(lines) + 1) // _LEGEND_COLUMNS)
    return page_svg(name, description, draw, 2.6 + 0.2 * rows, legend_columns=_LEGEND_COLUMNS)


def _draw_line(axes: "Axes", number: int, line: Line, num_lines: int) -> Any:
    """Draw it; its key in the legend."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": _colour(number)}
    if line.is_mean:
        dash = _DASHES[number // len(RUN_COLOURS) % len(_DASHES)]
        axes.plot(*line.quantized, dash, drawstyle="steps-post", linewidth=1.6, **look)
        if line.band is not None:
            axes.fill_between(line.quantized[0], *line.band, step="post", alpha=0.12, linewidth=0, **look)
        return Line2D([], [], label=line.label, linestyle=dash, **look)
    look["marker"] = _MARKERS[number % len(_MARKERS)]
    for (x, y), dash in ((line.quantized, "-"), (line.fp, "--")):
        if not x:
            continue
        # Markers at other places for each, so that lines on top of each other stay apart.
        step = max(1, len(x) // 6)
        every = (number * step // max(num_lines, 1), step)
        style: dict[str, Any] = {"linewidth": 1.8} if dash == "-" else {"linewidth": 1.0, "markerfacecolor": "none"}
        axes.plot(x, y, dash, markevery=every, **look, **style)
    return Line2D([], [], label=line.label, linestyle="-" if line.quantized[0] else "--", **look)


def _draw_target(axes: "Axes", target: float) -> Any:
    from matplotlib.lines import Line2D

    text = COLOURS["text"]
    axes.axhline(target, color=text, linewidth=0.9, linestyle=":")
    return Line2D([], [], label="worst final", color=text, linewidth=0.9, linestyle=":")


def _colour(number: int) -> str:
    return COLOURS[f"run-{number % len(RUN_COLOURS)}"]


def curves_svg(cells: Sequence[Cell]) -> str:
    """A file: quantized metric over virtual time; mean over the seeds, three evaluations each, and least to largest.

    A line ends where the first of its seeds does.
    """
    lines = [entry.line("virtual") for entry in allocator_entries(cells)]
    size, unit = time_unit(max(line.end for line in lines))
    metric = f"quantized {cells[0].metric_name}"
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
    durations = [(each.allocator, each.virtual_to_target) for each in found if each.virtual_to_target is not None]
    if not durations:
        return ""
    names = list(dict.fromkeys(name for name, _ in durations))
    size, unit = time_unit(max(duration.seconds for _, duration in durations))

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
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(left=0)
        key = "; bar: mean; arrow: not reached until then" if as_file else ""
        axes.set_xlabel(f"virtual time to target ({unit}){key}")
        return []

    description = (
        f"Virtual time to the target of {', '.join(names)}. Point: a seed; arrow: not reached until then; bar: mean."
    )
    height = 1.0 + 0.32 * len(names)
    if as_file:
        return file_svg("time-to-target", description, draw, (_FILE_INCHES, height))
    return page_svg("time-to-target", description, draw, height)


def modes_svg(
    name: str, description: str, what: str, labels: Sequence[str], counts: Sequence[Mapping[str, int]]
) -> str:
    """One bar each, its local fits split by mode; `what` they are, `labels` and `counts` from top to bottom."""

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        start = [0] * len(labels)
        for mode in MODES:
            values = [int(each.get(mode, 0)) for each in counts]
            if any(values):
                axes.barh(range(len(labels)), values, left=start, height=0.65, color=MODE_COLOURS[mode], label=mode)
            start = [before + value for before, value in zip(start, values, strict=True)]
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_ylabel(what)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("local fits")
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=1.2 + 0.25 * max(len(labels), 2))


def bytes_svg(
    name: str, description: str, what: str, labels: Sequence[str], up: Sequence[int], down: Sequence[int]
) -> str:
    """Two bars each, bytes up and bytes down; as in `modes_svg`."""
    size, unit = byte_unit(max((*up, *down), default=0))

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        for label, counts, offset, colour in (("up", up, -0.2, "upload"), ("down", down, 0.2, "download")):
            places = [row + offset for row in range(len(labels))]
            axes.barh(places, [count / size for count in counts], height=0.36, color=COLOURS[colour], label=label)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_ylabel(what)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=1.2 + 0.25 * max(len(labels), 2))
