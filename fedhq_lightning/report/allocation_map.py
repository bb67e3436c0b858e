"""How the allocation map is drawn: clients in the plane of time and risk, and the boundary's region."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from fedhq_lightning.report.curve_figures import time_unit
from fedhq_lightning.report.formats import MODE_NAMES
from fedhq_lightning.report.picture_style import COLOURS, MODE_COLOURS
from fedhq_lightning.run.allocation import Allocation, AllottedClient, RoundBoundary
from fedhq_lightning.types import MODES, ClientId

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = ("o", "s", "^", "D", "v", "P")
_WIDE = 8.0  # times between the fastest and the slowest, from which on the time axis is logarithmic
_MOST_SHAPES = 300  # more points become an image inside the SVG, which is smaller
_UNABLE_COLOUR = "#d43d51"  # fixed, as those of the modes: among many clients it is part of an image


def draw_map(axes: "Axes", allocation: Allocation, boundary: RoundBoundary, trained: Mapping[ClientId, str]) -> None:
    """Draw the clients and one round's boundary.

    Args:
        axes: Empty ones.
        allocation: The clients.
        boundary: The round's.
        trained: Mode of each client of that round's cohort.
    """
    clients = allocation.clients
    finite = [client.qat_seconds for client in clients if 0 < client.qat_seconds < math.inf]
    fastest, slowest = min(finite, default=1.0), max(finite, default=1.0)
    size, unit = time_unit(slowest)
    log = slowest > _WIDE * fastest
    edge = slowest * (1.15 if log else 1.05)  # where clients stand whose time is not known
    limits = (fastest / 1.25, slowest * 1.35) if log else (0.0, slowest * 1.1)
    # T is the point of the picture, unless it lies so far off that the clients would be crowded together.
    limit = boundary.seconds if boundary.qat else 0.0
    limits = (min(limits[0], max(limit / 1.25, fastest / 4)), max(limits[1], min(limit * 1.1, slowest * 2)))
    if log:
        axes.set_xscale("log")
        _plain_ticks(axes, (limits[0] / size, limits[1] / size))
    highest = max((client.risk for client in clients if math.isfinite(client.risk)), default=0.0)
    top = 1.1 * highest or 1.0
    axes.set_xlim(limits[0] / size, limits[1] / size)
    axes.set_ylim(-0.03 * top, top)
    axes.set_xlabel(f"virtual time in QAT, fewest steps ({unit})")
    axes.set_ylabel("risk")
    # A rho just above the highest risk is no line through that client.
    level = boundary.risk if boundary.qat and boundary.risk <= highest else top
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


def map_keys(allocation: Allocation) -> list[Any]:
    """The legend's keys: modes, the region, and a marker for each tier."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = [Patch(color=MODE_COLOURS[mode], label=MODE_NAMES[mode]) for mode in MODES if mode != "fp"]
    keys.append(Patch(color=MODE_COLOURS["qat"], alpha=0.2, label="QAT region"))
    by_marker: dict[str, list[str]] = {}
    for tier, marker in _tier_markers(allocation.clients).items():
        by_marker.setdefault(marker, []).append(tier)
    text = COLOURS["text"]
    looks = [(marker, tiers[0] if len(tiers) == 1 else "other tiers", text) for marker, tiers in by_marker.items()]
    if any(not client.can_qat for client in allocation.clients):
        looks.append(("x", "cannot hold QAT", _UNABLE_COLOUR))
    for marker, label, colour in looks:
        short = label if len(label) <= 24 else f"{label[:23]}\N{HORIZONTAL ELLIPSIS}"
        look: dict[str, Any] = {"marker": marker, "markerfacecolor": "none", "markeredgecolor": colour, "label": short}
        keys.append(Line2D([], [], linestyle="none", markersize=6, **look))
    return keys


def legend_columns(allocation: Allocation) -> int:
    """Keys in a line of the legend: fewer where tiers have long names."""
    return 2 if any(len(client.tier) > 12 for client in allocation.clients) else 3


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
