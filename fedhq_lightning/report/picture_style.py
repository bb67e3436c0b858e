"""What the report's pictures share: colours of the page, matplotlib's style, and the finished SVG.

Drawn by matplotlib, an extra that is imported when the first picture is drawn. The same figures give the same bytes: no
dates, fixed ids, and matplotlib's own defaults whatever style the user has set (which stays as it was).
"""

import html
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedhq_lightning.support.extras import install_command, is_installed
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.support.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

MODE_COLOURS = {"fp": "#7b8490", "ptq": "#2a6fb5", "qat": "#d0761c"}
"""Cells of the map are an image inside the SVG, so these are fixed: a contrast of at least 3 to the page's light and
its dark cards (WCAG 2.2, 1.4.11), and ptq darker than qat, which shows in grey too."""
RUN_COLOURS = ("#0b7d8c", "#c2187a", "#6f7d00", "#7a4a1e", "#b3261e")
"""Of those that stand side by side, on a light background."""
_DARK_RUN_COLOURS = ("#4fc3d0", "#f26fb5", "#c5d04a", "#d3a27a", "#ff8a80")
PAGE_COLOURS = {
    "text": ("#1d2330", "#e6e9ef"),
    "grid": ("#e4e8ee", "#2b313c"),
    "card": ("#f5f7fa", "#1d222b"),
    "quantized": ("#1b7f5c", "#4fc79a"),
    "fp": (MODE_COLOURS["fp"], MODE_COLOURS["fp"]),
    "download": ("#8f6fd0", "#a58ae8"),
    "analysis": ("#b04fb3", "#e08fe2"),
    "compute": ("#5e35a1", "#8465cf"),
    "upload": ("#34205c", "#ddd3f5"),
    "trial": ("#8a6d00", "#d9b93a"),
    **{f"run-{number}": both for number, both in enumerate(zip(RUN_COLOURS, _DARK_RUN_COLOURS, strict=True))},
}
"""By what it means, a colour of the page in light and in dark; what fp is, a mode or a view, has one. No two meanings
share a colour on any page: violets are what time and bytes go to, the last ones stand for runs."""
# matplotlib writes fixed colours, these; in the finished SVG stands the page's CSS variable, or in a file of its own,
# which nobody knows the background of, the light one on white.
COLOURS = {name: f"#01010{number:x}" for number, name in enumerate(PAGE_COLOURS, start=1)}
"""What a picture is drawn with, by what it means."""
LEFT_OUT_MARKS = {"late": ("o", "ring"), "idle": ("_", "bar"), "quarantined": ("x", "cross")}
"""On the map, why a client's update was left out: matplotlib's marker, and what it looks like in words."""

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
        key: COLOURS["text"]
        for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    },
    "grid.color": COLOURS["grid"],
}

_NOISE = (r"Glyph \d+ .*missing from font", "Matplotlib currently does not support", ".*collapsed to zero")
"""Of names that a font has no letters for, or that leave no room: they are the user's, and the page's text has them."""
_NOTHING = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def page_svg(
    name: str,
    description: str,
    draw: "Callable[[Figure], list[Any]]",
    height_inches: float,
    legend_columns: int | None = None,
) -> str:
    """A picture for the report's page: it follows the page's colours, light or dark, and its width.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        draw: Draws on a fresh figure; returns the legend's keys, none for no legend.
        height_inches: Height at a width of 4.4 inches.
        legend_columns: Keys in a line of the legend; all in one line by default.

    Returns:
        An `<svg>` element; where nothing can be drawn, the description as a paragraph.
    """
    if not can_draw():
        return f"<p>{html.escape(description)}</p>"
    svg = _drawn(name, draw, (_WIDTH_INCHES, height_inches), legend_columns, transparent=True)
    svg = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL).replace("xlink:href=", "href=")
    body = re.sub(r'(\bid="|url\(#|href="#)', lambda match: f"{match[0]}{name}-", body)
    for meaning, written in COLOURS.items():
        body = body.replace(written, "currentColor" if meaning == "text" else f"var(--{meaning})")
    label = html.escape(description, quote=True)
    return f'<svg role="img" aria-label="{label}" {view_box[0] if view_box else ""}>{body.rstrip()}'


def file_svg(
    name: str,
    description: str,
    draw: "Callable[[Figure], list[Any]]",
    size_inches: tuple[float, float],
    legend_columns: int | None = None,
) -> str:
    """A picture as a file of its own, on white; arguments as for `page_svg`, but with the width.

    Returns:
        The file's content; empty where nothing can be drawn.
    """
    if not can_draw():
        return ""
    svg = _drawn(name, draw, size_inches, legend_columns, transparent=False)
    for meaning, written in COLOURS.items():
        svg = svg.replace(written, "#ffffff" if meaning == "card" else PAGE_COLOURS[meaning][0])
    title = f"<title>{html.escape(description)}</title>"
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}\n {title}{svg[start:]}"


def can_draw() -> bool:
    """Whether matplotlib is there. Where it is not, a warning says so, and pages have words in place of pictures."""
    if is_installed("matplotlib"):
        return True
    warnings.warn(f"pictures are left out: they take matplotlib: {install_command('matplotlib')}", stacklevel=1)
    return False


@contextmanager
def own_style(settings: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Matplotlib as it is by default, whatever the user's style, and without its remarks on fonts.

    A "$" in the name of a client, a class or a metric is no formula: most would not be one that can be read.

    Args:
        settings: Other values of matplotlib's settings.
    """
    with libraries_quiet("matplotlib", level=logging.ERROR, noise=_NOISE):
        import matplotlib.style

        with matplotlib.style.context(["default", {"text.parse_math": False, **settings}]):
            yield


def whole_numbers() -> "Locator":
    """Ticks for an axis of rounds."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=8, integer=True)


def _drawn(
    name: str,
    draw: "Callable[[Figure], list[Any]]",
    size_inches: tuple[float, float],
    legend_columns: int | None,
    transparent: bool,
) -> str:
    file = io.StringIO()
    # The ids inside an SVG are hashes with this salt; unsalted they would be random.
    with own_style(_STYLE | {"svg.hashsalt": name}):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=size_inches, layout="constrained")
        FigureCanvasSVG(figure)
        keys = draw(figure)
        if keys:
            columns = min(len(keys), legend_columns or len(keys))
            look: dict[str, Any] = {"columnspacing": 1.2, "handlelength": 1.6}
            figure.legend(handles=keys, loc="outside upper left", ncols=columns, **look)
        figure.savefig(file, format="svg", transparent=transparent, dpi=144, metadata=_NOTHING)
    return printable(file.getvalue())
