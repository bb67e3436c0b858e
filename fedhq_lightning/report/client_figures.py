"""The report's pictures of clients: who trained how in which round, and where each one's time went."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from fedhq_lightning.report.curve_figures import time_unit
from fedhq_lightning.report.formats import MODE_NAMES
from fedhq_lightning.report.picture_style import COLOURS, LEFT_OUT_MARKS, MODE_COLOURS, page_svg, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_INCHES = 0.17
_MOST_ROWS_INCHES = 5.0
_MOST_LABELS = 40
_MOST_SHAPES = 300  # more marks become an image inside the SVG, which is smaller


@dataclass(frozen=True)
class ClientRow:
    """One row of a picture.

    Attributes:
        label: Name of the client.
        tier: Name of its device profile; rows of a tier follow one another.
    """

    label: str
    tier: str


@dataclass(frozen=True)
class ModeMap:
    """Which client trained how in which round.

    Attributes:
        rows: The clients, from top to bottom.
        rounds: One a column.
        cells: Position (row, column) -> mode; absent where the client did not take part.
        left_out: Position (row, column) -> `late`, `idle` or `quarantined`.
    """

    rows: Sequence[ClientRow]
    rounds: Sequence[int]
    cells: Mapping[tuple[int, int], str]
    left_out: Mapping[tuple[int, int], str]


class _Layout:
    """Where the rows are once each tier has a line of its own above its clients.

    Args:
        rows: The clients.
    """

    def __init__(self, rows: Sequence[ClientRow]) -> None:
        inches = min(_ROW_INCHES, _MOST_ROWS_INCHES / max(len(rows), 1))
        heading = math.ceil(_ROW_INCHES / inches)  # rows that a line of text takes
        self.labels = [row.label for row in rows]
        self.places: list[int] = []
        self.headings: list[tuple[float, str]] = []
        at = 0
        for tier, members in groupby(rows, key=lambda row: row.tier):
            self.headings.append((at + (heading - 1) / 2, tier))
            at += heading
            count = len(list(members))
            self.places += range(at, at + count)
            at += count
        self.height = at
        self.inches = 1.0 + inches * max(at, 6)

    def label(self, axes: "Axes", left: float) -> None:
        """Names of clients beside the axes, of tiers above their clients, from `left` in data coordinates on."""
        for place, tier in self.headings:
            short = tier if len(tier) <= 48 else f"{tier[:47]}\N{HORIZONTAL ELLIPSIS}"
            axes.annotate(
                short, (left, place), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center", style="italic"
            )
        if len(self.labels) <= _MOST_LABELS:
            axes.set_yticks(self.places, self.labels, fontsize=8)
            axes.set_ylabel("client")
        else:
            axes.set_yticks([])
            axes.set_ylabel(f"{len(self.labels)} clients")
        axes.tick_params(axis="y", length=0)


def mode_map_svg(name: str, description: str, modes: ModeMap) -> str:
    """Client x round, coloured by mode; a ring marks late clients, a bar idle ones, a cross quarantined ones.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        modes: At least one row and one round.

    Returns:
        An `<svg>` element.
    """
    layout, columns = _Layout(modes.rows), len(modes.rounds)
    # Points; a cell is about twice that.
    size = max(1.5, min(4.0, 200.0 / max(columns, 1), 300.0 / max(layout.height, 1)))

    def draw(canvas: "Figure") -> list[Any]:
        from matplotlib.colors import to_rgba

        image = [[(0.0, 0.0, 0.0, 0.0)] * columns for _ in range(layout.height)]
        for (row, column), mode in modes.cells.items():
            image[layout.places[row]][column] = to_rgba(MODE_COLOURS[mode])
        axes = canvas.subplots()
        left = modes.rounds[0] - 0.5
        edges = (left, left + columns, layout.height - 0.5, -0.5)
        axes.imshow(image, interpolation="none", aspect="auto", extent=edges)
        if len(modes.rows) <= _MOST_LABELS:
            axes.hlines([place - 0.5 for place in layout.places], left, left + columns, COLOURS["card"], linewidth=1.0)
        for word, (marker, _) in LEFT_OUT_MARKS.items():
            places = [place for place, left_out in modes.left_out.items() if left_out == word]
            axes.plot(
                [modes.rounds[column] for _, column in places],
                [layout.places[row] for row, _ in places],
                linestyle="none",
                marker=marker,
                markersize=size,
                markeredgewidth=size / 4,
                markerfacecolor="none",
                markeredgecolor="#111111",
                rasterized=len(places) > _MOST_SHAPES,
            )
        layout.label(axes, left)
        axes.grid(visible=False)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(whole_numbers())
        return list(_mode_keys(modes))

    return page_svg(name, description, draw, height_inches=layout.inches)


def _mode_keys(modes: ModeMap) -> Iterator[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    used, text = set(modes.cells.values()), COLOURS["text"]
    yield from (Patch(color=colour, label=MODE_NAMES[mode]) for mode, colour in MODE_COLOURS.items() if mode in used)
    for word, (marker, _) in LEFT_OUT_MARKS.items():
        if word in modes.left_out.values():
            look: dict[str, Any] = {"marker": marker, "markerfacecolor": "none", "markeredgecolor": text}
            yield Line2D([], [], linestyle="none", label=word, **look)


def split_svg(name: str, description: str, rows: Sequence[ClientRow], parts: Mapping[str, Sequence[float]]) -> str:
    """One bar a client, split in its virtual seconds by what they were spent on.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        rows: The clients, from top to bottom.
        parts: `download`, `analysis`, `compute`, `upload`, or some of them -> virtual seconds, one a bar.

    Returns:
        An `<svg>` element.
    """
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]
    size, unit = time_unit(max(totals, default=0.0))
    layout = _Layout(rows)

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        start = [0.0] * len(rows)
        edge: dict[str, Any] = {"height": 0.8, "edgecolor": COLOURS["card"], "linewidth": 0.6}
        for part, seconds in parts.items():
            values = [value / size for value in seconds]
            axes.barh(layout.places, values, left=start, color=COLOURS[part], label=part, **edge)
            start = [before + value for before, value in zip(start, values, strict=True)]
        layout.label(axes, 0.0)
        axes.set_ylim(layout.height - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"virtual time of one local fit ({unit})")
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=layout.inches)
