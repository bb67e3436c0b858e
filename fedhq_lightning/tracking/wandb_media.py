"""Tables and pictures of a finished run for Weights & Biases, and the scalars of its summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.report.picture_style import can_draw
from fedhq_lightning.run.allocation import read_allocation
from fedhq_lightning.run.client_history import ClientHistory
from fedhq_lightning.run.logged_rows import METRICS, logged_values
from fedhq_lightning.run.records import LEFT_OUT
from fedhq_lightning.run.run import Run
from fedhq_lightning.tracking.mode_picture import mode_picture

MOST_ROWS = 10_000
"""Rows of one table; W&B shows no more."""
_SUMMARY = (
    "rounds",
    "best_round",
    "scheme",
    "wall_seconds",
    "virtual_seconds",
    "uplink_bytes",
    "downlink_bytes",
    "mode_counts",
    "quarantined",
)


def summary_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What of `summary.json` W&B's summary shows, to compare runs by: it becomes the columns of a table of runs.

    The metrics of the deployed model are `deployed/NAME`: under their own names W&B keeps the best round's. Of test
    metrics it has the one that is called as the monitored one, or the first.
    """
    values = {name: summary[name] for name in _SUMMARY if name in summary}
    values |= {f"deployed/{name}": summary[name] for name in METRICS if summary.get(name) is not None}
    tested = summary.get("test_metrics") or {}
    alike = str(summary.get("metric_name")).replace("val", "test")
    for kind in ("quantized", "fp"):
        own = [name for name in tested if name.startswith(f"{kind}/")]
        values |= {name: tested[name] for name in own if name == f"{kind}/{alike}"} or {
            name: tested[name] for name in own[:1]
        }
    on_clients = summary.get("on_clients") or {}
    of_deployed = on_clients.get("quantized") or on_clients.get("fp") or {}
    values |= {f"on_clients/{name}": of_deployed[name] for name in ("mean", "worst_decile") if name in of_deployed}
    after = (summary.get("fine_tuning") or {}).get("after") or {}
    of_tuned = after.get("quantized") or after.get("fp") or {}
    values |= {f"fine_tuned/{name}": of_tuned[name] for name in ("mean", "worst_decile") if name in of_tuned}
    worst = summary.get("worst_client")
    return _scalars(values if worst is None else values | {"worst_client": worst["metric"]})


def best_values(run_dir: Path, monitor_mode: str) -> dict[str, dict[str, float]]:
    """The best of all rounds that were trained: W&B counts round 0, and of a resumed run the latest process's only.

    Args:
        run_dir: Holds `rounds.jsonl`.
        monitor_mode: "min" or "max", else there is no best.

    Returns:
        Name to `{"max": value}` or `{"min": value}`.
    """
    if monitor_mode not in ("min", "max"):
        return {}
    rows = [logged_values(record) for record in Run(run_dir).rounds if record.round > 0]
    found = {}
    for name in METRICS:
        values = [row[name] for row in rows if name in row and math.isfinite(row[name])]
        if values:
            found[name] = {monitor_mode: (max if monitor_mode == "max" else min)(values)}
    return found


def tables_and_pictures(summary: Mapping[str, Any], run_dir: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What is logged once, at the end.

    Args:
        summary: Of the run.
        run_dir: The run directory, complete.

    Returns:
        wandb's media by name: the tables `clients`, `client_rounds`, `tiers` and `per_class`, the picture `modes`, and
        with a HybridAllocator the tables `allocation_clients` and `allocation_boundaries` and the picture
        `allocation_map`. And what the run's summary says about them.
    """
    import wandb

    run = Run(run_dir)
    media: dict[str, Any] = {}
    notes: dict[str, str] = {}
    tables = {
        "clients": [_client_row(each) for each in run.clients],
        "tiers": [_scalar_row(tier) for tier in run.tiers],
        "per_class": _per_class_rows(summary.get("per_class")),
    }
    tables["client_rounds"], count = _client_rounds(run_dir)
    try:
        allocation = read_allocation(run_dir)
    except ConfigurationError:
        allocation = None  # another allocator's file of that name: kept, as it is
    if allocation is not None:
        tables |= {"allocation_clients": allocation.client_rows(), "allocation_boundaries": allocation.boundary_rows()}
        notes["allocation_explanation"] = allocation.explanation
    for name, rows in tables.items():
        if rows:
            media[name] = _table(rows[:MOST_ROWS])
    if count > MOST_ROWS:
        notes["client_rounds_note"] = f"the last {MOST_ROWS:,} of {count:,} rows; all are in clients.parquet"
    if len(run.clients) > MOST_ROWS:
        notes["clients_note"] = f"the first {MOST_ROWS:,} of {len(run.clients):,} clients, slowest tier first"
    if run.clients and can_draw():
        picture, caption = mode_picture(run.clients, [record.round for record in run.rounds if record.round > 0])
        media["modes"] = wandb.Image(picture, caption=caption)
    if (run_dir / "allocation.svg").is_file():
        media["allocation_map"] = wandb.Html((run_dir / "allocation.svg").read_text(encoding="utf-8"), inject=False)
    return media, notes


def _client_row(client: ClientHistory) -> dict[str, Any]:
    """One client over the whole run."""
    left_out = list(client.left_out.values())
    means = zip(("download_seconds", "compute_seconds", "upload_seconds"), client.mean_seconds, strict=True)
    return {
        "client_id": str(client.client_id),
        "tier": client.tier,
        "rounds": len(client.modes),
        **client.mode_counts,
        **{status: left_out.count(status) for status in LEFT_OUT},
        **dict(means),
        "uplink_bytes": client.uplink_bytes,
    }


def _client_rounds(run_dir: Path) -> tuple[list[dict[str, Any]], int]:
    """The latest rows of `clients.parquet`, one a client and round, and how many it has; none where nobody wrote it."""
    import pyarrow.parquet

    if not (run_dir / "clients.parquet").is_file():
        return [], 0
    table = pyarrow.parquet.read_table(run_dir / "clients.parquet")
    rows = table.slice(max(0, table.num_rows - MOST_ROWS)).to_pylist()
    return [{**row, "client_id": str(row["client_id"])} for row in rows], table.num_rows


def _per_class_rows(per_class: Any) -> list[dict[str, Any]]:
    """Accuracy of each class; nothing where the run has none."""
    if not isinstance(per_class, Mapping) or not per_class.get("classes"):
        return []
    columns = {name: values for name, values in per_class.items() if isinstance(values, Sequence)}
    columns = {name: values for name, values in columns.items() if len(values) == len(per_class["classes"])}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{"class": str(row.pop("classes")), **row} for row in rows]


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns: list[str | int] = list(rows[0])
    return wandb.Table(columns=columns, data=[list(row.values()) for row in rows], allow_mixed_types=True)


def _scalar_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """One level: what is below a dict under its own names."""
    row: dict[str, Any] = {}
    for name, value in values.items():
        row |= value if isinstance(value, Mapping) else {name: value}
    return row


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _scalars(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {name: value for name, value in found.items() if not isinstance(value, list) and value != {}}
