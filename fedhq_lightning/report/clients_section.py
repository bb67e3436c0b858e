"""The report's section on the clients: who trained how, and what it cost in virtual time."""

import re
from collections import Counter

from fedhq_lightning.report.client_figures import ClientRow, ModeMap, mode_map_svg, split_svg
from fedhq_lightning.report.formats import TIER_HEADER, format_modes, format_seconds, tier_rows, worst_client_text
from fedhq_lightning.report.page import figure, figures, paragraph, section, table
from fedhq_lightning.report.picture_style import LEFT_OUT_MARKS
from fedhq_lightning.run.client_history import ClientHistory
from fedhq_lightning.run.run import Run

_MOST_ROWS_IN_MAP = 120
_MOST_BARS = 30
_LONGEST_LABEL = 14
_MOST_REASONS = 10
_NUMBER = re.compile(r"(?<![\w.:])-?\d[\d.,]*(e[+-]?\d+)?")


def clients_section(run: Run) -> str:
    """Modes of each client by round, its times, and both by tier."""
    title = "Clients and modes"
    if not run.clients:
        return section(title, paragraph("No client took part."))
    tiers = table(
        "Device tiers. Virtual times are means of one local fit; slowest tier first.", TIER_HEADER, tier_rows(run.tiers)
    )
    pictures = figures([_mode_map(run), _time_split(run)])
    return section(title, f"{pictures}\n{_left_out(run)}<h3>Tiers</h3>\n{tiers}\n{_worst(run)}")


def _left_out(run: Run) -> str:
    """Why updates were not used; reasons that differ in numbers alone are one."""
    updates, clients = Counter[str](), Counter[str]()
    for client in run.clients:
        own = Counter[str]()
        for reason, count in client.reasons.items():
            own[_NUMBER.sub("#", reason)] += count
        updates += own
        clients += Counter(own.keys())
    if not updates:
        return ""
    rows = [(reason, f"{count:,}", f"{clients[reason]:,}") for reason, count in updates.most_common(_MOST_REASONS)]
    caption = "Why updates were not used"
    if len(updates) > _MOST_REASONS:
        caption += f"; the {_MOST_REASONS} most frequent of {len(updates):,} reasons"
    return f"<h3>Left out</h3>\n{table(caption, ('reason', 'updates', 'clients'), rows)}\n"


def _worst(run: Run) -> str:
    worst = run.summary.get("worst_client")
    if not worst:
        return paragraph("The metric was not measured for single clients.")
    return paragraph(f"Worst client: {worst_client_text(worst, run.metric_name)}.")


def _mode_map(run: Run) -> str:
    shown = sorted(run.clients, key=lambda client: -len(client.modes))[:_MOST_ROWS_IN_MAP]
    kept = {client.client_id for client in shown}
    clients = [client for client in run.clients if client.client_id in kept]
    rounds = [record.round for record in run.rounds if record.round > 0]
    column = {number: position for position, number in enumerate(rounds)}
    modes = ModeMap(
        rows=[_row(client) for client in clients],
        rounds=rounds,
        cells={(row, column[at]): mode for row, client in enumerate(clients) for at, mode in client.modes.items()},
        left_out={
            (row, column[at]): word for row, client in enumerate(clients) for at, word in client.left_out.items()
        },
    )
    totals = format_modes(run.summary.get("mode_counts") or {})
    left_out = ", ".join(
        f"{int(run.summary.get(status) or 0):,} {status} ({shape})" for status, (_, shape) in LEFT_OUT_MARKS.items()
    )
    note = f"Local fits: {totals}; {left_out}. Empty: not in the round's cohort."
    if len(clients) < len(run.clients):
        note += f" The {len(clients)} clients that took part most, of {len(run.clients):,}."
    svg = mode_map_svg("modes", f"Map of the mode of each client in each round. {note}", modes)
    return figure("Mode of each client in each round", note, svg)


def _time_split(run: Run) -> str:
    slowest = sorted(run.clients, key=lambda client: -_mean_total(client))[:_MOST_BARS]
    kept = {client.client_id for client in slowest}
    clients = [client for client in run.clients if client.client_id in kept]
    download, compute, upload = zip(*(client.mean_seconds for client in clients), strict=True)
    analysis = [client.mean_analysis_seconds for client in clients]
    longest = format_seconds(_mean_total(slowest[0]))
    note = f"Mean of one local fit, virtual. Slowest: client {slowest[0].client_id} ({slowest[0].tier}), {longest}."
    if len(clients) < len(run.clients):
        note += f" The {len(clients)} slowest of {len(run.clients):,} clients."
    parts = {"download": download, "analysis": analysis, "compute": compute, "upload": upload}
    if not any(analysis):
        del parts["analysis"]
    *others, last = parts
    description = f"Bars: virtual time of each client, split in {', '.join(others)} and {last}. {note}"
    svg = split_svg("split", description, [_row(client) for client in clients], parts)
    return figure("Virtual time of each client", note, svg)


def _mean_total(client: ClientHistory) -> float:
    return sum(client.mean_seconds) + client.mean_analysis_seconds


def _row(client: ClientHistory) -> ClientRow:
    """Its name cut so that a long one leaves room for the picture; the tables have it whole."""
    name = str(client.client_id)
    short = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
    return ClientRow(short, client.tier)
