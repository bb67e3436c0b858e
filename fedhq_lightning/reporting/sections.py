"""The report's sections, each a piece of HTML made from one run's history."""

import html
from collections.abc import Sequence
from itertools import accumulate

from fedhq_lightning.federated.records import RoundRecord
from fedhq_lightning.reporting.figures import Curve, ModeMap, curves_svg, mode_map_svg, split_svg, time_unit
from fedhq_lightning.reporting.history import ClientHistory, RunHistory
from fedhq_lightning.reporting.overview import (
    TIER_HEADER,
    format_bytes,
    format_metric,
    format_modes,
    format_seconds,
    rounds_text,
    summary_rows,
    tier_rows,
    worst_client_text,
)
from fedhq_lightning.reporting.page import figure, folded, table

_MOST_ROWS_IN_MAP = 120
_MOST_BARS = 30
_MOST_CLIENTS_IN_TABLE = 200
_ROUND_CLOCKS = ("wall since start", "virtual since start")
_ROUND_HEADER = ("round", "quantized", "fp", *_ROUND_CLOCKS, "up", "down", "modes", "late", "quarantined")
_VIRTUAL_TIMES = ("download, virtual", "compute, virtual", "upload, virtual")
_CLIENT_HEADER = ("client", "tier", "rounds by mode", *_VIRTUAL_TIMES, "up", "left out")
_BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def header_section(run: RunHistory) -> str:
    """Title and the figures that matter most."""
    summary, name = run.summary, _metric_name(run)
    tiles = [
        (f"{name}, quantized ({summary.get('scheme') or 'no scheme'})", format_metric(summary.get("metric_quantized"))),
        (f"{name}, fp", format_metric(summary.get("metric_fp"))),
        ("wall time", format_seconds(float(summary.get("wall_seconds", 0.0)))),
        ("virtual time", format_seconds(float(summary.get("virtual_seconds", 0.0)))),
        ("bytes up", format_bytes(summary.get("uplink_bytes", 0))),
        ("rounds", rounds_text(summary)),
    ]
    shown = "".join(f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd></div>" for label, text in tiles)
    recipe = html.escape(str(summary.get("recipe") or "Federated run"))
    return (
        f"<h1>{recipe}</h1>\n<p>Run {html.escape(run.name)}. Wall time was measured on this host; virtual time is what"
        " the modelled fleet would have taken. The quantized metric is that of the deployable model.</p>\n"
        f'<dl class="tiles">{shown}</dl>'
    )


def course_section(run: RunHistory) -> str:
    """The monitored metric by round, by wall time and by virtual time, and the bytes sent."""
    evaluated = [record for record in run.rounds if record.monitored is not None]
    note = "" if evaluated else "<p>No round of this run was evaluated.</p>\n"
    figures = _metric_figures(run, evaluated) if evaluated else []
    figures += _bytes_figure(run)
    return f'<h2>Over the run</h2>\n{note}<div class="figures">{"".join(figures)}</div>'


def _metric_figures(run: RunHistory, evaluated: Sequence[RoundRecord]) -> list[str]:
    name = _metric_name(run)
    last = evaluated[-1]
    result = (
        f"At round {last.round}: quantized {format_metric(last.metric_quantized)}, fp {format_metric(last.metric_fp)}."
    )
    wall, virtual = last.total_wall_seconds, last.total_virtual_seconds
    wall_size, wall_unit = time_unit(wall)
    virtual_size, virtual_unit = time_unit(virtual)
    axes = (
        ("round", "round", [float(record.round) for record in evaluated], result),
        (
            "wall time",
            f"wall time ({wall_unit})",
            [record.total_wall_seconds / wall_size for record in evaluated],
            f"As measured on this host: {format_seconds(wall)} wall up to round {last.round}.",
        ),
        (
            "virtual time",
            f"virtual time ({virtual_unit})",
            [record.total_virtual_seconds / virtual_size for record in evaluated],
            f"As the modelled fleet would have taken: {format_seconds(virtual)} virtual up to round {last.round}.",
        ),
    )
    figures = []
    for key, label, positions, note in axes:
        curves = [
            Curve("quantized", "quantized", positions, [record.metric_quantized for record in evaluated]),
            Curve("fp", "fp", positions, [record.metric_fp for record in evaluated]),
        ]
        title = f"{name} by {key}"
        description = f"Line plot: {title}, quantized and fp. {result}"
        svg = curves_svg(f"metric-{key.split()[0]}", description, curves, label, name)
        figures.append(figure(title, note, svg))
    return figures


def _bytes_figure(run: RunHistory) -> list[str]:
    rounds = [record for record in run.rounds if record.round > 0]
    if not rounds:
        return []
    positions = [float(record.round) for record in rounds]
    up, down = (
        list(accumulate(record.uplink_bytes for record in rounds)),
        list(accumulate(record.downlink_bytes for record in rounds)),
    )
    size, unit = next(((size, unit) for size, unit in _BYTE_UNITS if max(up[-1], down[-1]) >= size), (1.0, "B"))
    curves = [
        Curve("up", "upload", positions, [total / size for total in up]),
        Curve("down", "download", positions, [total / size for total in down]),
    ]
    note = f"Payloads of all clients since the start: {format_bytes(up[-1])} up, {format_bytes(down[-1])} down."
    svg = curves_svg(
        "bytes", f"Line plot: bytes sent since the start by round. {note}", curves, "round", f"{unit} since the start"
    )
    return [figure("Bytes by round", note, svg)]


def allocation_section(run: RunHistory) -> str:
    """Who trained how, and what it cost in virtual time."""
    if not run.clients:
        return "<h2>Clients</h2>\n<p>No client took part.</p>"
    figures = [_mode_map(run), _time_split(run)]
    tiers = table("Virtual times are means of one local fit; slowest tier first.", TIER_HEADER, tier_rows(run.tiers))
    return (
        f'<h2>Clients and modes</h2>\n<div class="figures">{"".join(figures)}</div>\n'
        f"<h2>Tiers and worst client</h2>\n{tiers}\n{_worst(run)}"
    )


def _worst(run: RunHistory) -> str:
    worst = run.summary.get("worst_client")
    if not worst:
        return "<p>The metric was not measured for single clients.</p>"
    return f"<p>Worst client: {html.escape(worst_client_text(worst, _metric_name(run)))}.</p>"


def _mode_map(run: RunHistory) -> str:
    shown = sorted(run.clients, key=lambda client: -len(client.modes))[:_MOST_ROWS_IN_MAP]
    kept = {client.client_id for client in shown}
    clients = [client for client in run.clients if client.client_id in kept]
    rounds = [record.round for record in run.rounds if record.round > 0]
    column = {number: position for position, number in enumerate(rounds)}
    modes = ModeMap(
        labels=[_label(client) for client in clients],
        rounds=rounds,
        cells={(row, column[at]): mode for row, client in enumerate(clients) for at, mode in client.modes.items()},
        left_out={
            (row, column[at]): word for row, client in enumerate(clients) for at, word in client.left_out.items()
        },
    )
    totals = format_modes(run.summary.get("mode_counts") or {})
    note = f"Local fits: {totals}. Empty: not in the round's cohort. Ring: late, cross: quarantined."
    if len(clients) < len(run.clients):
        note += f" The {len(clients)} clients that took part most, of {len(run.clients):,}."
    svg = mode_map_svg("modes", f"Map of the mode of each client in each round. {note}", modes)
    return figure("Mode of each client in each round", note, svg)


def _time_split(run: RunHistory) -> str:
    slowest = sorted(run.clients, key=lambda client: -sum(client.mean_seconds))[:_MOST_BARS]
    download, compute, upload = zip(*(client.mean_seconds for client in slowest), strict=True)
    labels = [_label(client) for client in slowest]
    longest = format_seconds(sum(slowest[0].mean_seconds))
    note = f"Mean of one local fit, virtual. Slowest: client {slowest[0].client_id} ({slowest[0].tier}), {longest}."
    if len(slowest) < len(run.clients):
        note += f" The {len(slowest)} slowest of {len(run.clients):,} clients."
    parts = {"download": download, "compute": compute, "upload": upload}
    svg = split_svg(
        "split", f"Bars: virtual time of each client, split in download, compute and upload. {note}", labels, parts
    )
    return figure("Virtual time of each client", note, svg)


def summary_section(run: RunHistory) -> str:
    """The summary and, folded, the numbers behind the pictures."""
    summary = table("", ("", ""), summary_rows(run.summary), head=False)
    rounds = [
        (
            str(record.round),
            _metric_cell(record.metric_quantized),
            _metric_cell(record.metric_fp),
            format_seconds(record.total_wall_seconds),
            format_seconds(record.total_virtual_seconds),
            format_bytes(record.uplink_bytes),
            format_bytes(record.downlink_bytes),
            format_modes(record.mode_counts),
            str(record.late),
            str(record.quarantined),
        )
        for record in run.rounds
    ]
    shown = run.clients[:_MOST_CLIENTS_IN_TABLE]
    note = f"The first {len(shown)} of {len(run.clients):,} clients, slowest tier first."
    note = note if len(shown) < len(run.clients) else ""
    clients = [
        (
            str(client.client_id),
            client.tier,
            format_modes(client.mode_counts),
            *(format_seconds(seconds) for seconds in client.mean_seconds),
            format_bytes(client.uplink_bytes),
            ", ".join(f"round {number}: {word}" for number, word in client.left_out.items()) or "-",
        )
        for client in shown
    ]
    return (
        f"<h2>Summary</h2>\n{summary}\n<h2>Numbers behind the pictures</h2>\n"
        f"{folded('Every round', table('', _ROUND_HEADER, rounds))}\n"
        f"{folded('Every client', table(note, _CLIENT_HEADER, clients))}"
    )


def recipe_section(run: RunHistory) -> str:
    """The recipe, which reruns this run, and the versions it ran with."""
    versions = run.summary.get("versions") or {}
    packages = table("", ("", ""), [(str(name), str(version)) for name, version in versions.items()], head=False)
    recipe = (
        f'<pre tabindex="0" aria-label="Recipe">{html.escape(run.recipe)}</pre>'
        if run.recipe
        else "<p>No recipe.yaml.</p>"
    )
    return f"<h2>Recipe</h2>\n{recipe}\n<h2>Versions</h2>\n{packages}"


def _metric_name(run: RunHistory) -> str:
    return str(run.summary.get("metric_name") or "metric")


def _label(client: ClientHistory) -> str:
    """Client and tier, cut so that long names leave room for the picture; the tables have them whole."""
    parts = [str(client.client_id), client.tier]
    short = [
        part if len(part) <= most else f"{part[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
        for part, most in zip(parts, (10, 12), strict=True)
    ]
    return f"{short[0]} ({short[1]})"


def _metric_cell(value: float | None) -> str:
    return "-" if value is None else format_metric(value)
