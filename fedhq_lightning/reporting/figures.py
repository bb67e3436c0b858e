"""The report's pictures: inline SVG that follows the page's colours, light or dark.

Drawn by matplotlib, imported when the first picture is drawn. The same figures give the same bytes: no dates, fixed
ids, and matplotlib's own defaults whatever style the user has set (which stays as it was).
"""

import html
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

# matplotlib writes fixed colours; these stand for the page's CSS variables and are replaced in the finished SVG.
_PAGE_COLOURS = {
    "text": ("#010101", "currentColor"),
    "grid": ("#010102", "var(--grid)"),
    "quantized": ("#010103", "var(--first)"),
    "fp": ("#010104", "var(--second)"),
    "download": ("#010105", "var(--third)"),
    "compute": ("#010106", "var(--first)"),
    "upload": ("#010107", "var(--second)"),
}
MODE_COLOURS = {"fp": "#98a0aa", "ptq": "#3f8fd0", "qat": "#e8913a"}
"""Cells of the map are an image inside the SVG, so these are fixed: readable on both backgrounds."""

_WIDTH_INCHES = 4.4  # 422 px: text stays readable when a phone shrinks it to 360 px
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    **{
        key: _PAGE_COLOURS["text"][0]
        for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    },
    "grid.color": _PAGE_COLOURS["grid"][0],
}


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

    def draw(axes: "Axes") -> list[Any]:
        for curve in curves:
            line, marker = looks[curve.look]
            points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y is not None]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                line,
                marker=marker if len(points) <= 40 else None,
                color=_PAGE_COLOURS[curve.look][0],
                label=curve.label,
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if x_label == "round":
            axes.xaxis.set_major_locator(_whole_numbers())
        return axes.get_legend_handles_labels()[0]

    return _svg(name, description, draw, height_inches=2.8)


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

    def draw(axes: "Axes") -> list[Any]:
        start = [0.0] * len(labels)
        for part, seconds in parts.items():
            values = [value / size for value in seconds]
            axes.barh(range(len(labels)), values, left=start, height=0.75, color=_PAGE_COLOURS[part][0], label=part)
            start = [before + value for before, value in zip(start, values, strict=True)]
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_ylabel("client (tier)")
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"virtual time of one local fit ({unit})")
        return axes.get_legend_handles_labels()[0]

    return _svg(name, description, draw, height_inches=1.0 + 0.17 * max(len(labels), 3))


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

    def draw(axes: "Axes") -> list[Any]:
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
        axes.xaxis.set_major_locator(_whole_numbers())
        used = set(modes.cells.values())
        keys: list[Any] = [Patch(color=colour, label=mode) for mode, colour in MODE_COLOURS.items() if mode in used]
        text = _PAGE_COLOURS["text"][0]
        keys += [
            Line2D([], [], linestyle="none", marker=marker, markerfacecolor="none", markeredgecolor=text, label=word)
            for word, marker in markers.items()
            if word in modes.left_out.values()
        ]
        return keys

    return _svg(name, description, draw, height_inches=1.0 + min(5.0, 0.17 * max(rows, 6)))


def _whole_numbers() -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=8, integer=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep matplotlib's remarks about its font cache off the terminal."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _svg(name: str, description: str, draw: Callable[["Axes"], list[Any]], height_inches: float) -> str:
    """Run `draw`, which returns the legend's keys, on fresh axes."""
    with _quiet():
        import matplotlib.style
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        file = io.StringIO()
        # The ids inside an SVG are hashes with this salt; unsalted they would be random.
        with matplotlib.style.context(["default", _STYLE | {"svg.hashsalt": name}]):
            figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
            FigureCanvasSVG(figure)
            keys = draw(figure.subplots())
            figure.legend(handles=keys, loc="outside upper left", ncols=len(keys), columnspacing=1.2, handlelength=1.6)
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _inline(file.getvalue(), name, description)


def _inline(svg: str, name: str, description: str) -> str:
    """An element for an HTML page: no prolog, no fixed size, page colours, ids of its own, a text alternative."""
    svg = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL).replace("xlink:href=", "href=")
    body = re.sub(r'(\bid="|url\(#|href="#)', lambda match: f"{match[0]}{name}-", body)
    for colour, page in _PAGE_COLOURS.values():
        body = body.replace(colour, page)
    label = html.escape(description, quote=True)
    return f'<svg role="img" aria-label="{label}" {view_box[0] if view_box else ""}>{body.rstrip()}'
