"""The report's section on the course of a run: the monitored metric by round and by both clocks, and the bytes."""

import math
from collections.abc import Sequence
from itertools import accumulate

from fedhq_lightning.report.curve_figures import Curve, curves_svg, difference_svg, enlarged, time_unit
from fedhq_lightning.report.formats import format_bytes, format_metric, format_seconds
from fedhq_lightning.report.model_figures import byte_unit
from fedhq_lightning.report.page import figure, figures, paragraph, section
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.run import Run


def course_section(run: Run) -> str:
    """The monitored metric by round, by wall time and by virtual time, and the bytes sent."""
    evaluated = [record for record in run.rounds if record.monitored is not None]
    note = "" if evaluated else paragraph("No round of this run was evaluated.")
    pictures = _metric_figures(run, evaluated) + _cost_figure(run, evaluated) if evaluated else []
    return section("Over the run", f"{note}{figures(pictures + _bytes_figure(run))}")


def _metric_figures(run: Run, evaluated: Sequence[RoundRecord]) -> list[str]:
    name, last = run.metric_name, evaluated[-1]
    best = next((record for record in evaluated if record.round == run.summary.get("best_round")), None)
    result = f"At round {last.round}: {_values(last)}."
    if best is not None and best is not last:
        result += f" Best, and deployed: round {best.round}, {_values(best)}."
    elif best is not None:
        result += " It is the best round, and deployed."
    at_wall, at_virtual = "", ""
    if best is not None:
        at_wall = f" Best round: after {format_seconds(best.total_wall_seconds)} wall."
        at_virtual = f" Best round: after {format_seconds(best.total_virtual_seconds)} virtual."
    wall, virtual = last.total_wall_seconds, last.total_virtual_seconds
    wall_size, wall_unit = time_unit(wall)
    virtual_size, virtual_unit = time_unit(virtual)
    axes = (
        (
            "wall time",
            f"wall time ({wall_unit})",
            [record.total_wall_seconds / wall_size for record in evaluated],
            f"As measured on this host: {format_seconds(wall)} wall up to round {last.round}.{at_wall}",
        ),
        (
            "virtual time",
            f"virtual time ({virtual_unit})",
            [record.total_virtual_seconds / virtual_size for record in evaluated],
            f"As the modelled fleet would have taken: {format_seconds(virtual)} virtual up to round {last.round}."
            f"{at_virtual}",
        ),
        ("round", "round", [float(record.round) for record in evaluated], result),
    )
    pictures = []
    for key, label, positions, note in axes:
        curves = [
            Curve("quantized", "quantized", positions, [record.metric_quantized for record in evaluated]),
            Curve("fp", "fp", positions, [record.metric_fp for record in evaluated]),
        ]
        shown = [curve for curve in curves if any(value is not None for value in curve.y)]
        ringed = None
        if best is not None:
            ringed = (positions[evaluated.index(best)], float(best.monitored or 0.0), f"best (round {best.round})")
        title = f"{name} by {key}"
        description = f"Line plot: {title}, {' and '.join(curve.label for curve in shown)}. {note}"
        svg = curves_svg(f"metric-{key.split()[0]}", description, shown, label, name, ringed)
        pictures.append(figure(title, note, svg))
        limits = enlarged([curve.y for curve in shown]) if key == "virtual time" else None
        if limits is not None:
            title = f"{name} by {key}, enlarged"
            said = f"The same, so high that the second half of the rounds fills the picture.{at_virtual}"
            if ringed is not None and not limits[0] <= ringed[1] <= limits[1]:
                ringed = None
            svg = curves_svg("metric-enlarged", f"Line plot: {title}. {said}", shown, label, name, ringed, limits)
            pictures.append(figure(title, said, svg))
    return pictures


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
    note = f"Quantized less fp: {low:+.4f} to {high:+.4f}, and {values[-1]:+.4f} at round {rounds[-1]:g}."
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
