"""A run in words and numbers for people: what the final table on the terminal and the report both show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedhq_lightning.run.records import LEFT_OUT
from fedhq_lightning.run.summary_form import monitored_on_test_data
from fedhq_lightning.types import MODES

PHASES = {
    "start": "start",
    "set_up": "set-up",
    "compile": "compiling",
    "rounds": "rounds",
    "fine_tuning": "fine-tuning",
    "deploy": "export",
    "final_evaluation": "evaluation",
    "report": "report",
    "loggers": "loggers",
}
"""What people call the phases of a run, in order; those that are not here are parts of its rounds."""

_ALL_WALL_TIME, _WALL_TIME_OF_ROUNDS = "wall time", "wall time of the rounds"

MODE_NAMES: Mapping[str, str] = {"fp": "fp", "ptq": "PTQ", "qat": "QAT"}
"""What people call the modes."""


def format_seconds(seconds: float) -> str:
    """A duration with its unit: `30 ms`, `12.4 s`, `4 min 05 s`, `2 h 07 min`, `3 d 04 h`.

    >>> format_seconds(245.2)
    '4 min 05 s'
    """
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 0.9995:
        if seconds == 0:
            return "0 s"
        return f"{seconds * 1e3:.3g} ms" if seconds >= 0.0009995 else f"{seconds * 1e6:.3g} µs"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part_size, part_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part_size:02d} {part_unit}"
    return f"{whole} s"


def format_bytes(count: float) -> str:
    """A size in decimal units: `812 B`, `1.23 MB`.

    >>> format_bytes(1_234_567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def speed_text(speedup: float) -> str:
    """`1.8 times as fast`, or `4.2 times as slow`; `as fast` where the difference is under a twentieth."""
    if abs(speedup - 1) < 0.05:
        return "as fast"
    return f"{speedup:.3g} times as fast" if speedup > 1 else f"{1 / speedup:.3g} times as slow"


def format_metric(value: float | None) -> str:
    """Four decimals, or `not evaluated`."""
    if value is None:
        return "not evaluated"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def format_modes(counts: Mapping[str, int]) -> str:
    """`PTQ 6, QAT 4`: the modes that occur, in their usual order."""
    return ", ".join(f"{MODE_NAMES[mode]} {counts[mode]:,}" for mode in MODES if counts.get(mode)) or "none"


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line of the summary; lines whose keys are absent are left out."""
    name = str(summary.get("metric_name") or "metric")
    rows = [
        (f"{name}, quantized", format_metric(summary.get("metric_quantized"))),
        (f"{name}, fp", format_metric(summary.get("metric_fp"))),
        *_on_test_data(summary),
        ("scheme", str(summary.get("scheme") or "none")),
        ("rounds", rounds_text(summary)),
    ]
    if phases := summary.get("wall_phases"):
        rows.append((_ALL_WALL_TIME, waited_text(phases)))
    elif summary.get("wall_seconds") is not None:
        rows.append((_WALL_TIME_OF_ROUNDS, format_seconds(float(summary["wall_seconds"]))))
    times = (
        ("wall time of local fits", "fit_wall_seconds"),
        ("wall time of the allocator", "allocator_seconds"),
        ("virtual time", "virtual_seconds"),
    )
    rows += [(label, format_seconds(float(summary[key]))) for label, key in times if summary.get(key) is not None]
    sizes = (("bytes up", "uplink_bytes"), ("bytes down", "downlink_bytes"))
    rows += [(label, format_bytes(summary[key])) for label, key in sizes if summary.get(key) is not None]
    rows.append(("local fits by mode", format_modes(summary.get("mode_counts") or {})))
    if summary.get("scheme") and "native_kernels" in summary:
        rows.append(("int8 kernels", _kernels_text(summary)))
    left_out = [f"{summary[key]:,} {key}" for key in LEFT_OUT if summary.get(key) is not None]
    if left_out:
        rows.append(("updates left out", ", ".join(left_out)))
    if privacy := summary.get("privacy"):
        rows.append(("privacy", _privacy_text(privacy)))
    if on_clients := summary.get("on_clients"):
        rows.append(("on clients", _on_clients_text(on_clients)))
    if tuned := summary.get("fine_tuning"):
        rows.append(("after fine-tuning", _fine_tuned_text(tuned)))
    if worst := summary.get("worst_client"):
        rows.append(("worst client", worst_client_text(worst, name)))
    if summary.get("export"):
        rows.append(("deployable model", _export_text(summary)))
    if summary.get("seed") is not None:
        rows.append(("seed", str(summary["seed"])))
    return rows


def wall_time(summary: Mapping[str, Any]) -> tuple[str, float]:
    """What it is called, and its seconds: from the command to the report; a run of 0.2 knows that of its rounds."""
    if phases := summary.get("wall_phases"):
        return _ALL_WALL_TIME, sum(phases.values())
    return _WALL_TIME_OF_ROUNDS, float(summary.get("wall_seconds") or 0.0)


def waited_text(phases: Mapping[str, float]) -> str:
    """How long somebody waited, and for what: `12.1 s: start 4.1 s, set-up 2.3 s, rounds 1.3 s, ...`.

    Args:
        phases: Wall seconds by phase, as `summary.json` has them.
    """
    told = dict.fromkeys(PHASES.values(), 0.0)
    for name, seconds in phases.items():
        told[PHASES.get(name, "rounds")] += seconds
    parts = ", ".join(f"{label} {format_seconds(seconds)}" for label, seconds in told.items() if seconds)
    return f"{format_seconds(sum(phases.values()))}: {parts}"


def _privacy_text(privacy: Mapping[str, Any]) -> str:
    budget = ", where the budget ended the run" if privacy.get("ended_by_budget") else ""
    epsilon = format_metric(privacy["epsilon"])
    return f"epsilon {epsilon} at delta {privacy['delta']:g}, for each {privacy['hides']}{budget}"


def _kernels_text(summary: Mapping[str, Any]) -> str:
    if level := summary["native_kernels"]:
        return f"our own, {level}"
    device = summary.get("device") or "cpu"
    compiled = "compiled" if summary.get("compiled_kernels") else "no C++ compiler"
    return f"torch's, {compiled}" if device == "cpu" else f"torch's, on {device}"


def _on_test_data(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = monitored_on_test_data(summary)
    if found is None:
        return []
    name, fp, quantized = found
    label = name if "test" in name else f"{name} on test data"
    values = ((f"{label}, quantized", quantized), (f"{label}, fp", fp))
    return [(label, format_metric(value)) for label, value in values if value is not None]


def worst_client_text(worst: Mapping[str, Any], metric_name: str) -> str:
    """Client, metric and value in one phrase; `worst` as `summary.json` holds it under `worst_client`."""
    text = f"{worst['client_id']}: {worst.get('metric_name', metric_name)} {format_metric(float(worst['metric']))}"
    evaluated = worst.get("clients_evaluated")
    return text if evaluated is None else f"{text} (of {evaluated:,} clients evaluated)"


def _on_clients_text(on_clients: Mapping[str, Any]) -> str:
    """`val_accuracy on what 20 clients hold back, quantized: mean 0.9312, worst decile 0.8000, spread 0.0711`."""
    view = "quantized" if on_clients.get("quantized") else "fp"
    figures = on_clients[view] or {}
    told = ((name.replace("_", " "), figures.get(name)) for name in ("mean", "worst_decile", "spread"))
    shown = ", ".join(f"{name} {format_metric(value)}" for name, value in told if value is not None)
    return f"{on_clients['metric_name']} on what {on_clients['clients']:,} clients hold back, {view}: {shown}"


def _fine_tuned_text(tuned: Mapping[str, Any]) -> str:
    """`val_accuracy of the models of 20 clients, quantized: mean 0.9312 (before 0.8511), worst decile 0.8000 (...)`."""
    view = "quantized" if tuned["after"].get("quantized") else "fp"
    before, after = tuned["before"][view] or {}, tuned["after"][view] or {}
    shown = ", ".join(
        f"{name.replace('_', ' ')} {format_metric(after[name])} (before {format_metric(before.get(name))})"
        for name in ("mean", "worst_decile", "spread")
        if after.get(name) is not None
    )
    return f"{tuned['metric_name']} of the models of {tuned['clients']:,} clients, {view}: {shown}"


def rounds_text(summary: Mapping[str, Any]) -> str:
    """Rounds run, and the one whose model was kept."""
    best = summary.get("best_round")
    return f"{summary.get('rounds')}" + ("" if best is None else f" (best: {best})")


def _export_text(summary: Mapping[str, Any]) -> str:
    export, reason = str(summary["export"]), str(summary.get("export_reason") or "")
    if export == "packed":
        return "model/model.safetensors, packed" + (f" (no model.pt2: {reason})" if reason else "")
    if export == "float32":
        return "model/weights.safetensors, float32"
    files = summary.get("files") or [{"name": export}]
    missing = [f"no {file['name']}: {file['reason']}" for file in files if file.get("reason")]
    there = ", ".join(f"model/{file['name']}" for file in files if not file.get("reason"))
    return f"{there} ({'; '.join(missing)})" if missing else there


def file_sizes(summary: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of each file of the deployed model, by its name; of a run of 0.2, of the only one that was timed."""
    if files := summary.get("files"):
        return {file["name"]: int(file["bytes"]) for file in files if file.get("bytes") is not None}
    size = (summary.get("inference") or {}).get("int8_bytes")
    return {} if size is None else {"model.pt2": int(size)}


TIER_HEADER = (
    "tier",
    "clients",
    "fits by mode",
    "download, virtual",
    "compute, virtual",
    "upload, virtual",
    "left out",
)


def tier_rows(tiers: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Texts of one table line a tier under `TIER_HEADER`; times are means over the tier's local fits."""
    return [
        (
            str(tier["tier"]),
            f"{tier['clients']:,}",
            format_modes(tier["mode_counts"]),
            *(format_seconds(tier[part]) for part in ("download_seconds", "compute_seconds", "upload_seconds")),
            f"{sum(tier.get(status, 0) for status in LEFT_OUT):,}",
        )
        for tier in tiers
    ]
