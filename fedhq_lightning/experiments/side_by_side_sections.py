"""The sections that a page of runs and one of cells share."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhq_lightning.experiments.side_by_side import Entry, Line
from fedhq_lightning.experiments.side_by_side_figures import bytes_svg, lines_svg, modes_svg
from fedhq_lightning.recipe.identity import differing
from fedhq_lightning.report.curve_figures import time_unit
from fedhq_lightning.report.formats import format_bytes, format_modes, format_seconds
from fedhq_lightning.report.page import figure, figures, paragraph, section, table
from fedhq_lightning.run.records import LEFT_OUT
from fedhq_lightning.run.run import Clock

_MOST_WITH_FP = 4
_TOTALS_HEADER = ("wall time of the rounds", "virtual time", "up", "down", "local fits by mode", *LEFT_OUT)


def curves_section(
    entries: Sequence[Entry],
    name: str,
    axes: Sequence[tuple[Clock, str]],
    target: float | None,
    more: Sequence[str] = (),
) -> str:
    """The metric over each clock, with the clock's remark, and after the first of them `more` pictures."""
    found = {clock: [entry.line(clock) for entry in entries] for clock, _ in axes}
    if len(entries) > _MOST_WITH_FP:
        found = {clock: [line.without_fp() for line in lines] for clock, lines in found.items()}
    named, pictures = ", ".join(entry.label for entry in entries), []
    for clock, note in axes:
        lines, said = found[clock], _said_of(found[clock])
        size, key, label = 1.0, "round", "round"
        if clock != "round":
            size, unit = time_unit(max(line.end for line in lines))
            key, label = f"{clock} time", f"{clock} time ({unit})"
        shown = [line.scaled(size) for line in lines]
        description = f"Line plot: {name} by {key} of {named}. {said} {note}"
        svg = lines_svg(f"runs-{clock}", description, shown, label, name, target)
        pictures.append(figure(f"{name} by {key}", f"{note} {said}", svg))
    return section("Over the runs", figures([pictures[0], *more, *pictures[1:]]))


def _said_of(lines: Sequence[Line]) -> str:
    if any(line.is_mean for line in lines):
        return "Mean over the seeds, of three evaluations each, and from least to largest."
    if not any(line.quantized[0] for line in lines):
        return "Dashed: fp."
    return "Solid: quantized, dashed: fp." if any(line.fp[0] for line in lines) else "Solid: quantized."


def totals_section(entries: Sequence[Entry], what: str) -> str:
    """Local fits by mode, bytes and times; `what` the entries are."""
    counts, names = [entry.mode_counts for entry in entries], [entry.short for entry in entries]
    said = "; ".join(f"{name}: {format_modes(count)}" for name, count in zip(names, counts, strict=True))
    modes = modes_svg("run-modes", f"Bars: local fits by mode of each {what}. {said}.", what, names, counts)
    up, down = ([round(entry.total(f"{way}link_bytes")) for entry in entries] for way in ("up", "down"))
    sent = "; ".join(
        f"{name}: {format_bytes(a)} up, {format_bytes(b)} down" for name, a, b in zip(names, up, down, strict=True)
    )
    sizes = bytes_svg("run-bytes", f"Bars: bytes of each {what}, up and down. {sent}.", what, names, up, down)
    note = "Means over the seeds; the table has the numbers." if entries[0].over_seeds else "The table has the numbers."
    pictures = [figure("Local fits by mode", note, modes), figure("Bytes of the whole run", note, sizes)]
    rows = [
        (
            entry.label,
            format_seconds(entry.total("wall_seconds")),
            format_seconds(entry.total("virtual_seconds")),
            format_bytes(entry.total("uplink_bytes")),
            format_bytes(entry.total("downlink_bytes")),
            format_modes(count),
            *(f"{round(entry.total(name)):,}" for name in LEFT_OUT),
        )
        for entry, count in zip(entries, counts, strict=True)
    ]
    caption = "Time, bytes and local fits of each whole run"
    totals = table(caption + (", mean over the seeds" if entries[0].over_seeds else ""), (what, *_TOTALS_HEADER), rows)
    return section("Time, bytes and modes", f"{figures(pictures)}\n{totals}")


def versions_section(labels: Sequence[str], versions: Sequence[Mapping[str, Any]]) -> str:
    """Packages whose versions are not the same in all runs."""
    found = differing(versions)
    if not found:
        return section("Versions", paragraph("All runs ran with the same versions."))
    return section("Versions", differing_table("package", "Packages whose versions differ", labels, found))


def differing_table(key: str, caption: str, labels: Sequence[str], found: Sequence[tuple[str, Sequence[str]]]) -> str:
    """What `differing` gives, a column for each that is compared; classes by their own names where these tell them."""
    rows = [(name, values, [value.rpartition(".")[2] for value in values]) for name, values in found]
    shown = [
        (name, *(short if name.endswith("class_path") and len(set(short)) == len(set(values)) else values))
        for name, values, short in rows
    ]
    return table(caption, (key, *labels), shown)
