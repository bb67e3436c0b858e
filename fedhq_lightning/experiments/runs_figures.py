"""Pictures of several runs on one axis: curves over a clock, and local fits by mode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedhq_lightning.report.model_figures import byte_unit
from fedhq_lightning.report.picture_style import COLOURS, MODE_COLOURS, RUN_COLOURS, page_svg, whole_numbers
from fedhq_lightning.types import MODES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LEGEND_COLUMNS = 2


@dataclass(frozen=True)
class RunCurves:
    """One run's two lines.

    Attributes:
        label: The run's name in the legend.
        x: Positions of its evaluated rounds.
        quantized: Values, None where not evaluated.
        fp: Likewise.
    """

    label: str
    x: Sequence[float]
    quantized: Sequence[float | None]
    fp: Sequence[float | None]


def runs_svg(
    name: str,
    description: str,
    runs: Sequence[RunCurves],
    x_label: str,
    y_label: str,
    target: float | None,
    with_fp: bool,
    y_limits: tuple[float, float] | None = None,
) -> str:
    """Each run in its colour and with its marker: quantized solid and filled, fp dashed and thin.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        runs: In the order of the page.
        x_label: Label of the horizontal axis, with its unit.
        y_label: Label of the vertical axis.
        target: A value to be marked across the picture.
        with_fp: Whether to draw fp where there is a quantized line.
        y_limits: Lowest and highest value to be seen, all by default.

    Returns:
        An `<svg>` element.
    """
    from matplotlib.lines import Line2D

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        keys: list[Any] = []
        for number, run in enumerate(runs):
            look: dict[str, Any] = {"color": COLOURS[f"run-{number % len(RUN_COLOURS)}"]}
            look["marker"] = _MARKERS[number % len(_MARKERS)]
            has_quantized = any(value is not None for value in run.quantized)
            for values, line in ((run.quantized, "-"), (run.fp, "--")):
                points = [(x, y) for x, y in zip(run.x, values, strict=True) if y is not None]
                if not points or (line == "--" and has_quantized and not with_fp):
                    continue
                # Markers at other places for each run, so that lines on top of each other stay apart.
                step = max(1, len(points) // 6)
                every = (number * step // max(len(runs), 1), step)
                style: dict[str, Any] = (
                    {"linewidth": 1.8} if line == "-" else {"linewidth": 1.0, "markerfacecolor": "none"}
                )
                axes.plot([x for x, _ in points], [y for _, y in points], line, markevery=every, **look, **style)
            keys.append(Line2D([], [], label=run.label, linestyle="-" if has_quantized else "--", **look))
        text = COLOURS["text"]
        if target is not None:
            axes.axhline(target, color=text, linewidth=0.9, linestyle=":")
            keys.append(Line2D([], [], label="worst final", color=text, linewidth=0.9, linestyle=":"))
        if y_limits is not None:
            axes.set_ylim(*y_limits)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if x_label == "round":
            axes.xaxis.set_major_locator(whole_numbers())
        return keys

    rows = -(-(len(runs) + 1) // _LEGEND_COLUMNS)
    return page_svg(name, description, draw, 2.6 + 0.2 * rows, legend_columns=_LEGEND_COLUMNS)


def modes_svg(name: str, description: str, labels: Sequence[str], counts: Sequence[Mapping[str, int]]) -> str:
    """One bar a run, its local fits split by mode; `labels` and `counts` from top to bottom, as in `runs_svg`."""

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
        axes.set_ylabel("run")
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("local fits")
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=1.2 + 0.25 * max(len(labels), 2))


def run_bytes_svg(name: str, description: str, labels: Sequence[str], up: Sequence[int], down: Sequence[int]) -> str:
    """Two bars a run, bytes up and bytes down; `labels` from top to bottom, as in `runs_svg`."""
    size, unit = byte_unit(max((*up, *down), default=0))

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        for label, counts, offset, colour in (("up", up, -0.2, "upload"), ("down", down, 0.2, "download")):
            places = [row + offset for row in range(len(labels))]
            axes.barh(places, [count / size for count in counts], height=0.36, color=COLOURS[colour], label=label)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_ylabel("run")
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=1.2 + 0.25 * max(len(labels), 2))
