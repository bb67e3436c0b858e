"""The report's pictures of rounds and clients, as inline SVG; drawn on `canvas`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedhq_lightning.reporting.canvas import COLOURS, MODE_COLOURS, page_svg, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


@dataclass(frozen=True)
class ModeMap:
    """Which client trained how in which round.

    Attributes:
        labels: One a row.
        rounds: One a column.
        cells: Position (row, column) -> mode; absent where the client did not take part.
        left_out: Position (row, column) -> `late` or `quarantined`.
    """

    labels: Sequence[str]
    rounds: Sequence[int]
    cells: Mapping[tuple[int, int], str]
    left_out: Mapping[tuple[int, int], str]


def time_unit(longest_seconds: float) -> tuple[float, str]:
    """Seconds in the unit that suits the longest duration on an axis, and its name."""
    for shortest, size, unit in ((172800.0, 86400.0, "days"), (7200.0, 3600.0, "h"), (120.0, 60.0, "min")):
        if longest_seconds >= shortest:
            return size, unit
    return (0.001, "ms") if 0 < longest_seconds < 1 else (1.0, "s")


def curves_svg(name: str, description: str, curves: Sequence[Curve], x_label: str, y_label: str) -> str:
    """Lines over one axis.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        curves: The lines.
        x_label: Label of the horizontal axis, with its unit.
        y_label: Label of the vertical axis, with its unit.

    Returns:
        An `<svg>` element.
    """
    looks = {"quantized": ("-", "s"), "fp": ("--", "o"), "upload": ("-", "s"), "download": ("--", "o")}

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        for curve in curves:
            line, marker = looks[curve.look]
            points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y is not None]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                line,
                marker=marker if len(points) <= 40 else None,
                color=COLOURS[curve.look],
                label=curve.label,
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if x_label == "round":
            axes.xaxis.set_major_locator(whole_numbers())
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=2.8)


def split_svg(name: str, description: str, labels: Sequence[str], parts: Mapping[str, Sequence[float]]) -> str:
    """One bar a client, split in virtual download, compute and upload seconds; arguments as for `curves_svg`.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        labels: One a bar, from top to bottom.
        parts: `download`, `compute`, `upload` -> virtual seconds, one a bar.

    Returns:
        An `<svg>` element.
    """
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]
    size, unit = time_unit(max(totals, default=0.0))

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        start = [0.0] * len(labels)
        for part, seconds in parts.items():
            values = [value / size for value in seconds]
            axes.barh(range(len(labels)), values, left=start, height=0.75, color=COLOURS[part], label=part)
            start = [before + value for before, value in zip(start, values, strict=True)]
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_ylabel("client (tier)")
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"virtual time of one local fit ({unit})")
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=1.0 + 0.17 * max(len(labels), 3))


def mode_map_svg(name: str, description: str, modes: ModeMap) -> str:
    """Client x round, coloured by mode; a ring marks late clients, a cross quarantined ones; see `curves_svg`."""
    from matplotlib.colors import to_rgba
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows, columns = len(modes.labels), len(modes.rounds)
    empty = (0.0, 0.0, 0.0, 0.0)
    image = [
        [
            to_rgba(MODE_COLOURS[modes.cells[row, column]]) if (row, column) in modes.cells else empty
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    markers = {"late": "o", "quarantined": "x"}
    marker_size = max(
        1.5, min(4.0, 200.0 / max(columns, 1), 300.0 / max(rows, 1))
    )  # points; a cell is about twice that

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        first = modes.rounds[0]
        axes.imshow(
            image, interpolation="none", aspect="auto", extent=(first - 0.5, first + columns - 0.5, rows - 0.5, -0.5)
        )
        for word, marker in markers.items():
            places = [place for place, left_out in modes.left_out.items() if left_out == word]
            axes.plot(
                [modes.rounds[column] for _, column in places],
                [row for row, _ in places],
                linestyle="none",
                marker=marker,
                markersize=marker_size,
                markeredgewidth=marker_size / 4,
                markerfacecolor="none",
                markeredgecolor="#111111",
            )
        if rows <= 40:
            axes.set_yticks(range(rows), modes.labels, fontsize=8)
            axes.set_ylabel("client (tier)")
        else:
            axes.set_yticks([])
            axes.set_ylabel(f"{rows} clients")
        axes.grid(visible=False)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(whole_numbers())
        used = set(modes.cells.values())
        keys: list[Any] = [Patch(color=colour, label=mode) for mode, colour in MODE_COLOURS.items() if mode in used]
        text = COLOURS["text"]
        keys += [
            Line2D([], [], linestyle="none", marker=marker, markerfacecolor="none", markeredgecolor=text, label=word)
            for word, marker in markers.items()
            if word in modes.left_out.values()
        ]
        return keys

    return page_svg(name, description, draw, height_inches=1.0 + min(5.0, 0.17 * max(rows, 6)))
