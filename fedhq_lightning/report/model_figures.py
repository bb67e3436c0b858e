"""The report's pictures of the deployable model: accuracy on each class, and its speed and size beside float32."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedhq_lightning.report.picture_style import COLOURS, page_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def byte_unit(largest: float) -> tuple[float, str]:
    """Bytes in the unit that suits the largest size on an axis, and its name."""
    return next(((size, unit) for size, unit in _BYTE_UNITS if largest >= size), (1.0, "B"))


def classes_svg(
    name: str,
    description: str,
    labels: Sequence[str],
    fp: Sequence[float | None],
    quantized: Sequence[float | None] | None,
) -> str:
    """One line a class, with a mark for the fp model and one for the quantized model on it.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        labels: The classes, from top to bottom.
        fp: Accuracy on each, None where it has no example.
        quantized: Accuracy of the deployed model on each class; None for a run without scheme.

    Returns:
        An `<svg>` element.
    """
    rows = range(len(labels))
    hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.6}

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        after = [None] * len(labels) if quantized is None else quantized
        pairs = [(row, a, b) for row, a, b in zip(rows, fp, after, strict=True) if a is not None and b is not None]
        axes.hlines([row for row, _, _ in pairs], [a for _, a, _ in pairs], [b for _, _, b in pairs], COLOURS["text"])
        for label, values, marker, size, look in (
            ("fp", fp, "o", 8, hollow),
            ("quantized", quantized, "s", 4.5, {}),
        ):
            if values is not None:
                shown = [math.nan if value is None else value for value in values]
                axes.plot(
                    shown, rows, marker, linestyle="none", markersize=size, color=COLOURS[label], label=label, **look
                )
        axes.set_yticks(rows, labels, fontsize=8)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_ylabel("class")
        axes.set_xlabel("accuracy on the class, held-out")
        low, high = axes.get_xlim()
        axes.set_xlim(low, max(high, 1.0))
        return axes.get_legend_handles_labels()[0]

    return page_svg(name, description, draw, height_inches=1.1 + 0.2 * max(len(labels), 4))


def latency_svg(name: str, description: str, batches: Mapping[str, Mapping[str, Any]]) -> str:
    """Wall milliseconds of one forward of each form of the model, a panel a batch size, with quartiles.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        batches: Batch size -> form -> `ms` and `ms_quartiles`; what is float32 is called "fp32 ...".

    Returns:
        An `<svg>` element.
    """

    def draw(canvas: "Figure") -> list[Any]:
        heights = {"height_ratios": [len(figures) for figures in batches.values()]}
        panels = canvas.subplots(len(batches), 1, squeeze=False, gridspec_kw=heights)[:, 0]
        for axes, (batch_size, figures) in zip(panels, batches.items(), strict=True):
            for row, (form, times) in enumerate(figures.items()):
                colour = COLOURS["fp" if form.startswith("fp32") else "quantized"]
                axes.barh(row, float(times["ms"]), height=0.6, color=colour)
                ends = list(map(float, times["ms_quartiles"]))
                axes.plot(ends, [row, row], color=COLOURS["text"], linewidth=1.4, marker="|", markersize=7)
            axes.set_yticks(range(len(figures)), list(figures))
            axes.set_ylim(len(figures) - 0.4, -0.6)
            axes.set_xlim(left=0.0)
            axes.grid(axis="y", visible=False)
            axes.set_title(f"batch of {batch_size}", fontsize=9, loc="left")
        panels[-1].set_xlabel("wall time of one forward (ms)")
        return []

    bars = sum(map(len, batches.values()))
    return page_svg(name, description, draw, height_inches=0.7 + 0.35 * len(batches) + 0.3 * bars)


def sizes_svg(name: str, description: str, sizes: Mapping[str, int]) -> str:
    """One bar a file; `sizes` maps what it is to its bytes, and the rest is as in `latency_svg`."""
    size, unit = byte_unit(max(sizes.values(), default=0))

    def draw(canvas: "Figure") -> list[Any]:
        axes = canvas.subplots()
        colours = [COLOURS["fp" if label.startswith("float32") else "quantized"] for label in sizes]
        axes.barh(range(len(sizes)), [count / size for count in sizes.values()], height=0.6, color=colours)
        axes.set_yticks(range(len(sizes)), list(sizes))
        axes.set_ylim(len(sizes) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
        return []

    return page_svg(name, description, draw, height_inches=0.7 + 0.4 * len(sizes))
