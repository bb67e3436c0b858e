"""The report's section on the course of a run: the monitored metric, what quantization changes, losses, and bytes."""

import math
from collections.abc import Sequence
from itertools import accumulate

from fedhq_lightning.report.curve_figures import Curve, broken_at, curves_svg, difference_svg, time_unit
from fedhq_lightning.report.formats import format_bytes, format_metric, format_seconds
from fedhq_lightning.report.model_figures import byte_unit
from fedhq_lightning.report.page import figure, figures, paragraph, section
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.run import Run

_TRAIN = "train/"


def course_section(run: Run) -> str:
    """Each curve once: the monitored metric by round and virtual time, its loss, the losses, and the bytes sent."""
    evaluated = [record for record in run.rounds if record.monitored is not None]
    note = "" if evaluated else paragraph("No round of this run was evaluated.")
    pictures = [_metric_figure(run, evaluated), *_cost_figure(run, evaluated)] if evaluated else []
    return section("Over the run", f"{note}{figures([*pictures, *_loss_figure(run), *_bytes_figure(run)])}")


def _metric_figure(run: Run, evaluated: Sequence[RoundRecord]) -> str:
    """By round, with the virtual time of each above it."""
    name, last = run.metric_name, evaluated[-1]
    best = next((record for record in evaluated if record.round == run.summary.get("best_round")), None)
    note = f"At round {last.round}: {_values(last)}, {_clocks(last)}."
    if best is not None and best is not last:
        note += f" Best, and deployed: round {best.round}, {_values(best)}, {_clocks(best)}."
    elif best is not None:
        note += " It is the best round, and deployed."
    rounds = [float(record.round) for record in evaluated]
    curves = [
        Curve("quantized", "quantized", rounds, [record.metric_quantized for record in evaluated]),
        Curve("fp", "fp", rounds, [record.metric_fp for record in evaluated]),
    ]
    shown = [curve for curve in curves if any(value is not None for value in curve.y)]
    if broken_at([curve.y for curve in shown]) is not None:
        note += " The vertical axis is broken in two scales, to show the second half of the rounds."
    ringed = None
    if best is not None:
        ringed = (float(best.round), float(best.monitored or 0.0), f"best (round {best.round})")
    size, unit = time_unit(last.total_virtual_seconds)
    times = [record.total_virtual_seconds / size for record in evaluated]
    second = (f"virtual time ({unit})", times) if times[-1] > 0 else None
    title = f"{name} by round" + (" and virtual time" if second else "")
    description = f"Line plot: {title}, {' and '.join(curve.label for curve in shown)}. {note}"
    return figure(title, note, curves_svg("metric", description, shown, "round", name, ringed, second))


def _clocks(record: RoundRecord) -> str:
    wall, virtual = format_seconds(record.total_wall_seconds), format_seconds(record.total_virtual_seconds)
    return f"after {wall} wall and {virtual} virtual"


def _loss_figure(run: Run) -> list[str]:
    """What clients' training loss did, and the loss on held-out data where that is not the monitored metric."""
    names = dict.fromkeys(name for record in run.rounds for name in record.metrics if "loss" in name.lower())
    train = [name for name in names if name.startswith(_TRAIN)]
    if not train:
        return []
    curves, said = [Curve("training", "text", *_points(run, train[0]))], [_end_of(run, train[0], "training")]
    for view in ("quantized", "fp"):
        held_out = [name for name in names if name.startswith(f"{view}/")]
        if held_out and held_out[0] != f"{view}/{run.metric_name}":
            curves.append(Curve(f"held out, {view}", view, *_points(run, held_out[0])))
            said.append(_end_of(run, held_out[0], f"held out, {view}"))
    note = f"{'; '.join(said)}. Training is the mean over a round's clients, each of its last local epoch."
    name = train[0].removeprefix(_TRAIN)
    title = "Loss by round" if len(curves) > 1 else f"Training loss ({name}) by round"
    return [figure(title, note, curves_svg("loss", f"Line plot: {title}. {note}", curves, "round", "loss"))]


def _points(run: Run, name: str) -> tuple[list[float], list[float | None]]:
    found = [record for record in run.rounds if name in record.metrics]
    return [float(record.round) for record in found], [record.metrics[name] for record in found]


def _end_of(run: Run, name: str, label: str) -> str:
    last = next(record for record in reversed(run.rounds) if name in record.metrics)
    return f"{label} ({name.partition('/')[2]}) {format_metric(last.metrics[name])} at round {last.round}"


def _values(record: RoundRecord) -> str:
    return f"quantized {format_metric(record.metric_quantized)}, fp {format_metric(record.metric_fp)}"


def _cost_figure(run: Run, evaluated: Sequence[RoundRecord]) -> list[str]:
    """Quantized less fp, which two lines on top of each other do not show."""
    differences = [
        (float(record.round), record.metric_quantized - record.metric_fp)
        for record in evaluated
        if record.metric_quantized is not None and record.metric_fp is not None
    ]
    differences = [(number, value) for number, value in differences if math.isfinite(value)]
    if not differences:
        return []
    rounds, values = [number for number, _ in differences], [value for _, value in differences]
    low, high = min(values), max(values)
    said = [f"{value:+.4f}".replace("+0.0000", "0").replace("-0.0000", "0") for value in (low, high, values[-1])]
    note = f"Quantized less fp: {said[0]} to {said[1]}, and {said[2]} at round {rounds[-1]:g}."
    if said[0] == said[1]:
        note = f"Quantized less fp: {said[0]} in every round."
    description = f"Bars: what rounding to the scheme changes in {run.metric_name}, by round. {note}"
    svg = difference_svg("difference", description, rounds, values, "quantized - fp")
    return [figure("What quantization changes", note, svg)]


def _bytes_figure(run: Run) -> list[str]:
    rounds = [record for record in run.rounds if record.round > 0]
    if not rounds:
        return []
    positions = [float(record.round) for record in rounds]
    up, down = (
        list(accumulate(record.uplink_bytes for record in rounds)),
        list(accumulate(record.downlink_bytes for record in rounds)),
    )
    size, unit = byte_unit(max(up[-1], down[-1]))
    curves = [
        Curve("up", "upload", positions, [total / size for total in up]),
        Curve("down", "download", positions, [total / size for total in down]),
    ]
    note = f"Payloads of all clients since the start: {format_bytes(up[-1])} up, {format_bytes(down[-1])} down."
    svg = curves_svg(
        "bytes", f"Line plot: bytes sent since the start by round. {note}", curves, "round", f"{unit} since the start"
    )
    return [figure("Bytes by round", note, svg)]
