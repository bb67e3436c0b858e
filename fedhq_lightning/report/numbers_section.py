"""The report's tables of the numbers behind its pictures, folded."""

from fedhq_lightning.report.formats import format_bytes, format_metric, format_modes, format_seconds
from fedhq_lightning.report.page import folded, section, table
from fedhq_lightning.run.records import LEFT_OUT
from fedhq_lightning.run.run import Run

_MOST_CLIENTS = 200
_ROUND_CLOCKS = ("wall since start", "virtual since start")
_ROUND_HEADER = ("round", "quantized", "fp", *_ROUND_CLOCKS, "up", "down", "modes", *LEFT_OUT)
_VIRTUAL_TIMES = ("download, virtual", "compute, virtual", "upload, virtual")
_CLIENT_HEADER = ("client", "tier", "rounds by mode", *_VIRTUAL_TIMES, "up", "left out")


def numbers_section(run: Run) -> str:
    """Every round and every client."""
    rounds = table(f"{run.metric_name}, times and bytes of every round", _ROUND_HEADER, _round_rows(run))
    shown = run.clients[:_MOST_CLIENTS]
    note = "Every client, slowest tier first; times are means of one local fit"
    if len(shown) < len(run.clients):
        note = f"The first {len(shown)} of {len(run.clients):,} clients, slowest tier first; times are means of one fit"
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
    content = f"{folded('Every round', rounds)}\n{folded('Every client', table(note, _CLIENT_HEADER, clients))}"
    return section("Numbers behind the pictures", content)


def _round_rows(run: Run) -> list[tuple[str, ...]]:
    best = run.summary.get("best_round")
    return [
        (
            f"{record.round} (best)" if record.round == best else str(record.round),
            _cell(record.metric_quantized),
            _cell(record.metric_fp),
            format_seconds(record.total_wall_seconds),
            format_seconds(record.total_virtual_seconds),
            format_bytes(record.uplink_bytes),
            format_bytes(record.downlink_bytes),
            format_modes(record.mode_counts),
            *(str(getattr(record, status)) for status in LEFT_OUT),
        )
        for record in run.rounds
    ]


def _cell(value: float | None) -> str:
    return "-" if value is None else format_metric(value)
