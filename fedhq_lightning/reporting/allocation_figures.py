"""The allocation map: clients in the plane of time and risk with a round's boundary; and how the boundary moved."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.records import read_rounds
from fedhq_lightning.files import write_atomically
from fedhq_lightning.reporting.allocation_data import Allocation, AllottedClient, RoundBoundary, read_allocation
from fedhq_lightning.reporting.canvas import COLOURS, MODE_COLOURS, file_svg, page_svg, whole_numbers
from fedhq_lightning.reporting.figures import time_unit
from fedhq_lightning.types import MODES, ClientId

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P")
_WIDE = 8.0  # times between the fastest and the slowest, from which on the time axis is logarithmic
_MOST_SHAPES = 300  # more points become an image inside the SVG, which is smaller
_PANEL_INCHES = (4.6, 3.9)
_UNABLE_COLOUR = "#d43d51"  # fixed, as those of the modes: among many clients it is part of an image


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
        _draw_map(canvas.subplots(), allocation, boundary, trained)
        return _map_keys(allocation)

    return page_svg(name, description, draw, height_inches=3.7, legend_columns=_legend_columns(allocation))


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
            axes.step(rounds, line, where="mid", color=COLOURS["quantized"], label="incumbent")
            axes.plot(
                [each.round for each in challenging],
                [getattr(each, part) for each in challenging],
                linestyle="none",
                marker="D",
                markersize=5 if few else 3,
                markerfacecolor="none",
                markeredgecolor=COLOURS["fp"],
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
        Path of the picture; None where there is no `allocation.json`, or one that cannot be read (the report says why).

    Raises:
        ConfigurationError: `rounds.jsonl` is damaged, or the picture cannot be written.
    """
    try:
        allocation = read_allocation(run_dir)
    except ConfigurationError:
        return None
    if allocation is None or not allocation.clients or not allocation.boundaries:
        return None
    shown = allocation.telling_boundaries()
    wanted = {boundary.round for boundary in shown}
    trained: dict[int, dict[ClientId, str]] = {}
    for record in read_rounds(run_dir / "rounds.jsonl"):
        if record.round in wanted:
            trained[record.round] = {client.client_id: client.mode for client in record.clients}
    risks = [client.risk for client in allocation.clients]

    def draw(canvas: "Figure") -> list[Any]:
        panels = canvas.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, boundary in zip(panels, shown, strict=True):
            _draw_map(axes, allocation, boundary, trained.get(boundary.round, {}))
            title = f"round {boundary.round}, {_origin(boundary)}\n{_limits(boundary, risks)}"
            axes.set_title(title, fontsize=9, loc="left", pad=16)  # above the T of the boundary
            if axes is not panels[0]:
                axes.set_ylabel("")
        return _map_keys(allocation)

    texts = [f"round {boundary.round}: {describe_boundary(boundary, risks)}" for boundary in shown]
    description = f"Clients by virtual time in qat and risk, coloured by mode, with the boundary. {'; '.join(texts)}."
    width, height = _PANEL_INCHES
    path = run_dir / "allocation.svg"
    columns = 6 if len(shown) > 1 else _legend_columns(allocation)
    svg = file_svg("allocation", description, draw, (width * len(shown), height), columns)
    write_atomically(path, svg)
    return path


def _draw_map(axes: "Axes", allocation: Allocation, boundary: RoundBoundary, trained: Mapping[ClientId, str]) -> None:
    clients = allocation.clients
    finite = [client.qat_seconds for client in clients if 0 < client.qat_seconds < math.inf]
    fastest, slowest = min(finite, default=1.0), max(finite, default=1.0)
    size, unit = time_unit(slowest)
    log = slowest > _WIDE * fastest
    edge = slowest * (1.15 if log else 1.05)  # where clients stand whose time is not known
    limits = (fastest / 1.25, slowest * 1.35) if log else (0.0, slowest * 1.1)
    # T is the point of the picture, unless it lies so far off that the clients would be crowded together.
    limit = boundary.seconds
    limits = (min(limits[0], max(limit / 1.25, fastest / 4)), max(limits[1], min(limit * 1.1, slowest * 2)))
    if log:
        axes.set_xscale("log")
        _plain_ticks(axes, (limits[0] / size, limits[1] / size))
    highest = max((client.risk for client in clients if math.isfinite(client.risk)), default=0.0)
    top = 1.1 * highest or 1.0
    axes.set_xlim(limits[0] / size, limits[1] / size)
    axes.set_ylim(-0.03 * top, top)
    axes.set_xlabel(f"virtual time of a round in qat ({unit})")
    axes.set_ylabel("risk")
    # A rho just above the highest risk is no line through that client.
    level = boundary.risk if boundary.risk <= highest else top
    _draw_boundary(axes, limit / size, level, -0.03 * top, top)

    many = len(clients) > _MOST_SHAPES
    marker_size = 7.0 if len(clients) <= 60 else 5.0 if not many else 4.0
    markers = _tier_markers(clients)
    groups: dict[tuple[str, str, bool], list[AllottedClient]] = {}
    for client in clients:
        mode = trained.get(client.client_id)
        shown = mode or allocation.mode_under(client, boundary)
        groups.setdefault((markers[client.tier], shown, mode is not None), []).append(client)
    for (marker, mode, took_part), group in sorted(groups.items(), key=lambda item: item[0][2]):
        axes.plot(
            [min(client.qat_seconds, edge) / size for client in group],
            [client.risk for client in group],
            linestyle="none",
            marker=marker,
            markersize=marker_size if took_part or not many else 0.6 * marker_size,
            markerfacecolor=MODE_COLOURS[mode] if took_part else "none",
            markeredgecolor=MODE_COLOURS[mode],
            markeredgewidth=1.3 if took_part or not many else 0.5,
            rasterized=many,
        )
    unable = [client for client in clients if not client.can_qat]
    axes.plot(
        [min(client.qat_seconds, edge) / size for client in unable],
        [client.risk for client in unable],
        linestyle="none",
        marker="x",
        markersize=marker_size * 0.8,
        markeredgecolor=_UNABLE_COLOUR,
        rasterized=many,
    )


def _draw_boundary(axes: "Axes", limit: float, level: float, bottom: float, top: float) -> None:
    """The region of qat, shaded, and its edge: up at T as far as rho, then to the right at rho."""
    left, right = axes.get_xlim()
    edge = min(max(limit, left), right)
    turn = min(max(level, bottom), top)
    shade: dict[str, Any] = {"color": MODE_COLOURS["qat"], "alpha": 0.13, "linewidth": 0}
    axes.fill_between([left, edge], bottom, top, **shade)
    axes.fill_between([edge, right], turn, top, **shade)
    line: dict[str, Any] = {"color": COLOURS["text"], "linewidth": 1.3, "solid_joinstyle": "miter"}
    if left < limit < right:
        axes.plot([limit, limit], [bottom, turn], **line)
        axes.plot([limit, limit], [turn, top], **line | {"linewidth": 0.7, "linestyle": ":"})
        _name(axes, "T", (limit, 1.0), ("data", "axes fraction"), (0, 3), "center", "bottom")
    if bottom < level < top and limit < right:
        axes.plot([edge, right], [level, level], **line)
        _name(axes, "rho", (1.0, level), ("axes fraction", "data"), (3, 0), "left", "center")


def _name(
    axes: "Axes",
    text: str,
    place: tuple[float, float],
    measured_in: tuple[str, str],
    offset: tuple[float, float],
    across: str,
    along: str,
) -> None:
    """A name beside the axes, where it covers no client."""
    axes.annotate(
        text, place, xycoords=measured_in, xytext=offset, textcoords="offset points", fontsize=9, ha=across, va=along
    )


def _plain_ticks(axes: "Axes", limits: tuple[float, float]) -> None:
    """Ticks of a logarithmic axis as plain numbers, some five of them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = limits
    for steps in ((1, 2, 5), (1, 3), (1,)):
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 7:
            break
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))


def _tier_markers(clients: Sequence[AllottedClient]) -> dict[str, str]:
    """Tier -> marker, slowest tier first; the tiers beyond the markers share the last one."""
    times: dict[str, list[float]] = {}
    for client in clients:
        times.setdefault(client.tier, []).append(client.qat_seconds)
    order = sorted(times, key=lambda tier: (-median(times[tier]), tier))
    return {tier: _MARKERS[min(position, len(_MARKERS) - 1)] for position, tier in enumerate(order)}


def _legend_columns(allocation: Allocation) -> int:
    return 2 if any(len(client.tier) > 12 for client in allocation.clients) else 3


def _map_keys(allocation: Allocation) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = [Patch(color=MODE_COLOURS[mode], label=mode) for mode in MODES if mode != "fp"]
    keys.append(Patch(color=MODE_COLOURS["qat"], alpha=0.2, label="qat region"))
    by_marker: dict[str, list[str]] = {}
    for tier, marker in _tier_markers(allocation.clients).items():
        by_marker.setdefault(marker, []).append(tier)
    text = COLOURS["text"]
    looks = [(marker, tiers[0] if len(tiers) == 1 else "other tiers", text) for marker, tiers in by_marker.items()]
    if any(not client.can_qat for client in allocation.clients):
        looks.append(("x", "cannot hold qat", _UNABLE_COLOUR))
    for marker, label, colour in looks:
        short = label if len(label) <= 24 else f"{label[:23]}\N{HORIZONTAL ELLIPSIS}"
        look: dict[str, Any] = {"marker": marker, "markerfacecolor": "none", "markeredgecolor": colour, "label": short}
        keys.append(Line2D([], [], linestyle="none", markersize=6, **look))
    return keys
