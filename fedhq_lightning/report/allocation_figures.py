"""The allocation map: clients in the plane of time and risk with a round's boundary; and how the boundary moved."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhq_lightning.report.allocation_map import draw_map, legend_columns, map_keys
from fedhq_lightning.report.curve_figures import time_unit
from fedhq_lightning.report.picture_style import COLOURS, file_svg, page_svg, whole_numbers
from fedhq_lightning.run.allocation import Allocation, RoundBoundary
from fedhq_lightning.run.run import Run
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.types import ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_INCHES = (4.6, 3.9)


def map_svg(
    name: str, description: str, allocation: Allocation, boundary: RoundBoundary, trained: Mapping[ClientId, str]
) -> str:
    """The clients and one round's boundary, for the report's page.

    Args:
        name: Prefix of the ids inside, unique on the page.
        description: What the picture shows, for those who do not see it.
        allocation: The clients.
        boundary: The round's.
        trained: Mode of each client of that round's cohort; others are drawn hollow, by what the boundary gives them.

    Returns:
        An `<svg>` element.
    """

    def draw(canvas: "Figure") -> list[Any]:
        draw_map(canvas.subplots(), allocation, boundary, trained)
        return map_keys(allocation)

    return page_svg(name, description, draw, height_inches=3.7, legend_columns=legend_columns(allocation))


def boundary_svg(name: str, description: str, boundaries: Sequence[RoundBoundary]) -> str:
    """Slack and share over the rounds: the incumbent as a line, trials that challenged it as marks; see `map_svg`."""
    kept = {each.trial: each for each in boundaries if each.trial == each.incumbent}

    def draw(canvas: "Figure") -> list[Any]:
        panels = canvas.subplots(2, 1, sharex=True)
        rounds = [each.round for each in boundaries]
        challenging = [each for each in boundaries if each.trial != each.incumbent]
        few = len(rounds) <= 60
        for axes, part in zip(panels, ("slack", "share"), strict=True):
            # A trial that took over without a round of its own has no entry; its numbers are then not known yet.
            line = [getattr(kept[each.incumbent], part) if each.incumbent in kept else math.nan for each in boundaries]
            axes.step(rounds, line, where="mid", color=COLOURS["text"], label="incumbent")
            axes.plot(
                [each.round for each in challenging],
                [getattr(each, part) for each in challenging],
                linestyle="none",
                marker="D",
                markersize=5 if few else 3,
                markerfacecolor="none",
                markeredgecolor=COLOURS["trial"],
                label="on trial",
            )
            axes.set_ylabel(part)
            axes.margins(y=0.15)
        panels[1].set_xlabel("round")
        panels[1].xaxis.set_major_locator(whole_numbers())
        keys: list[Any] = panels[0].get_legend_handles_labels()[0]
        return keys if challenging else keys[:1]

    return page_svg(name, description, draw, height_inches=3.6)


def describe_boundary(boundary: RoundBoundary, risks: Sequence[float]) -> str:
    """T, rho and where they come from, in one phrase; `risks` are those of the clients shown."""
    return f"{_limits(boundary, risks)} ({_origin(boundary)})"


def _limits(boundary: RoundBoundary, risks: Sequence[float]) -> str:
    size, unit = time_unit(boundary.seconds)
    if not boundary.qat:
        within = f", T = {boundary.seconds / size:.3g} {unit}" if boundary.seconds else ""
        return f"QAT has not begun, PTQ for everybody{within}"
    above_all = boundary.risk > max(risks, default=0.0)
    level = "rho above every client's risk" if above_all else f"rho = {boundary.risk:.3g}"
    return f"T = {boundary.seconds / size:.3g} {unit}, {level}"


def _origin(boundary: RoundBoundary) -> str:
    return f"trial {boundary.trial}: slack {boundary.slack:.3g}, share {boundary.share:.2g}"


def write_allocation_picture(run_dir: Path) -> Path | None:
    """Write `allocation.svg`: the map with the first, a middle and the last round's boundary, side by side on white.

    Args:
        run_dir: A run directory with `rounds.jsonl`.

    Returns:
        Path of the picture; None where nothing can be drawn, or there is no `allocation.json`, or one that cannot be
        read (the report says why).

    Raises:
        ConfigurationError: `rounds.jsonl` is damaged, or the picture cannot be written.
    """
    run = Run(run_dir)
    allocation = run.allocation
    if allocation is None or not allocation.clients or not allocation.boundaries:
        return None
    shown = allocation.telling_boundaries()
    wanted = {boundary.round for boundary in shown}
    trained: dict[int, dict[ClientId, str]] = {}
    for record in run.stream():
        if record.round in wanted:
            trained[record.round] = {client.client_id: client.mode for client in record.clients}
    risks = [client.risk for client in allocation.clients]

    def draw(canvas: "Figure") -> list[Any]:
        panels = canvas.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, boundary in zip(panels, shown, strict=True):
            draw_map(axes, allocation, boundary, trained.get(boundary.round, {}))
            title = f"round {boundary.round}, {_origin(boundary)}\n{_limits(boundary, risks)}"
            axes.set_title(title, fontsize=9, loc="left", pad=16)  # above the T of the boundary
            if axes is not panels[0]:
                axes.set_ylabel("")
        return map_keys(allocation)

    texts = [f"round {boundary.round}: {describe_boundary(boundary, risks)}" for boundary in shown]
    description = f"Clients by virtual time in QAT and risk, coloured by mode, with the boundary. {'; '.join(texts)}."
    width, height = _PANEL_INCHES
    path = run_dir / "allocation.svg"
    columns = 6 if len(shown) > 1 else legend_columns(allocation)
    svg = file_svg("allocation", description, draw, (width * len(shown), height), columns)
    if not svg:
        return None
    write_atomically(path, svg)
    return path
