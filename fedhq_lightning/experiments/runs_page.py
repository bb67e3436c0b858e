"""The page that shows several runs side by side."""

from collections.abc import Sequence

from fedhq_lightning.experiments.runs_compared import ComparedRun, Comparison
from fedhq_lightning.experiments.runs_figures import RunCurves, modes_svg, run_bytes_svg, runs_svg
from fedhq_lightning.report.curve_figures import enlarged, time_unit
from fedhq_lightning.report.formats import format_bytes, format_metric, format_modes, format_seconds
from fedhq_lightning.report.page import contents, figure, figures, page, paragraph, section, table
from fedhq_lightning.run.records import RoundRecord

_MOST_WITH_FP = 4
_INTRODUCTION = (
    "Wall time was measured on the host of each run; virtual time is what the modelled fleet would have taken. "
    "The quantized metric is that of the deployable model, at the best round of each run."
)
_RUN_HEADER = ("run", "recipe", "folder", "scheme", "rounds", "best round", "seed")
_TOTALS_HEADER = ("run", "wall time", "virtual time", "up", "down", "local fits by mode", "late", "quarantined")


def comparison_page(comparison: Comparison) -> str:
    """The whole document.

    Args:
        comparison: Two runs or more.
    """
    title = f"{len(comparison.runs)} runs side by side"
    sections = [
        _runs(comparison),
        _results(comparison),
        _curves(comparison),
        _totals(comparison),
        _recipes(comparison),
        _versions(comparison),
    ]
    top = f"<h1>{title}</h1>\n{paragraph(_INTRODUCTION)}{contents(sections)}"
    return page(f"{title}: {comparison.metric_name}", "\n".join((top, *sections)))


def _runs(comparison: Comparison) -> str:
    rows = [
        (
            each.letter,
            each.run.recipe_name or "run",
            each.run.name,
            str(each.run.summary.get("scheme") or "none"),
            str(each.run.summary.get("rounds")),
            str(each.run.summary.get("best_round") or "-"),
            str(each.run.summary.get("seed")),
        )
        for each in comparison.runs
    ]
    return section("Runs", table("The runs, and what this page calls them", _RUN_HEADER, rows))


def _results(comparison: Comparison) -> str:
    name, target = comparison.metric_name, comparison.target
    header = ["run", "quantized", "fp"]
    if target is not None:
        header += [f"{what} until {format_metric(target)}" for what in ("rounds", "wall", "virtual")]
    rows = []
    for each in comparison.runs:
        summary = each.run.summary
        row = [each.label, format_metric(summary.get("metric_quantized")), format_metric(summary.get("metric_fp"))]
        if target is not None:
            row += _when(comparison.reached(each))
        rows.append(row)
    said = "A run has no final value, so no time to reach the worst one is told."
    if target is not None:
        said = f"The worst final is {format_metric(target)}; told is when each run was as good for the first time."
    elif comparison.direction is None:
        said = "The runs do not tell whether more or less of the metric is better, so no times to reach it are told."
    return section("Finals", paragraph(said) + table(f"{name} of each run at its best round", header, rows))


def _when(record: RoundRecord | None) -> list[str]:
    if record is None:
        return ["-", "-", "-"]
    wall, virtual = format_seconds(record.total_wall_seconds), format_seconds(record.total_virtual_seconds)
    return [str(record.round), wall, virtual]


def _curves(comparison: Comparison) -> str:
    name, runs = comparison.metric_name, comparison.runs
    all_rounds = [record for each in runs for record in each.run.evaluated]
    wall_size, wall_unit = time_unit(max((record.total_wall_seconds for record in all_rounds), default=0.0))
    virtual_size, virtual_unit = time_unit(max((record.total_virtual_seconds for record in all_rounds), default=0.0))
    with_fp = len(runs) <= _MOST_WITH_FP
    has_quantized = any(record.metric_quantized is not None for record in all_rounds)
    lines = "Solid: quantized, dashed: fp." if with_fp and has_quantized else "Solid: quantized."
    if not has_quantized:
        lines = "Dashed: fp."
    axes = (
        ("wall time", f"wall time ({wall_unit})", wall_size, "As measured on the host of each run."),
        ("virtual time", f"virtual time ({virtual_unit})", virtual_size, "As the modelled fleets would have taken."),
        ("round", "round", 1.0, "Rounds of different length count alike here."),
    )
    pictures = []
    for key, label, size, note in axes:
        curves = [
            RunCurves(
                each.label,
                [_position(record, key) / size for record in each.run.evaluated],
                [record.metric_quantized for record in each.run.evaluated],
                [record.metric_fp for record in each.run.evaluated],
            )
            for each in runs
        ]
        description = f"Line plot: {name} by {key} of {_named(runs)}. {lines} {note}"
        svg = runs_svg(f"runs-{key.split()[0]}", description, curves, label, name, comparison.target, with_fp)
        pictures.append(figure(f"{name} by {key}", f"{note} {lines}", svg))
        limits = enlarged([line for each in curves for line in (each.quantized, each.fp)])
        if key == "virtual time" and limits is not None:
            title = f"{name} by {key}, enlarged"
            said = f"The same, so high that the second half of the rounds fills the picture. {lines}"
            text = f"Line plot: {title}. {said}"
            svg = runs_svg("runs-enlarged", text, curves, label, name, comparison.target, with_fp, limits)
            pictures.append(figure(title, said, svg))
    return section("Over the runs", figures(pictures))


def _position(record: RoundRecord, key: str) -> float:
    if key == "round":
        return float(record.round)
    return record.total_wall_seconds if key == "wall time" else record.total_virtual_seconds


def _named(runs: Sequence[ComparedRun]) -> str:
    return ", ".join(each.label for each in runs)


def _totals(comparison: Comparison) -> str:
    runs = comparison.runs
    counts = [each.run.summary.get("mode_counts") or {} for each in runs]
    letters = [each.letter for each in runs]
    said = "; ".join(f"{letter}: {format_modes(count)}" for letter, count in zip(letters, counts, strict=True))
    modes = modes_svg("run-modes", f"Bars: local fits by mode of each run. {said}.", letters, counts)
    up, down = ([int(each.run.summary.get(f"{way}link_bytes") or 0) for each in runs] for way in ("up", "down"))
    sent = "; ".join(
        f"{letter}: {format_bytes(a)} up, {format_bytes(b)} down"
        for letter, a, b in zip(letters, up, down, strict=True)
    )
    sizes = run_bytes_svg("run-bytes", f"Bars: bytes of each run, up and down. {sent}.", letters, up, down)
    pictures = [figure("Local fits by mode", f"{said}.", modes), figure("Bytes of the whole run", f"{sent}.", sizes)]
    rows = [
        (
            each.label,
            format_seconds(float(each.run.summary.get("wall_seconds", 0.0))),
            format_seconds(float(each.run.summary.get("virtual_seconds", 0.0))),
            format_bytes(each.run.summary.get("uplink_bytes", 0)),
            format_bytes(each.run.summary.get("downlink_bytes", 0)),
            format_modes(count),
            f"{int(each.run.summary.get('late') or 0):,}",
            f"{int(each.run.summary.get('quarantined') or 0):,}",
        )
        for each, count in zip(runs, counts, strict=True)
    ]
    totals = table("Time, bytes and local fits of each whole run", _TOTALS_HEADER, rows)
    return section("Time, bytes and modes", f"{figures(pictures)}\n{totals}")


def _recipes(comparison: Comparison) -> str:
    title = "What differs in the recipes"
    missing = [each.label for each in comparison.runs if not each.run.recipe]
    if missing:
        return section(title, paragraph(f"Not told: no recipe.yaml in {', '.join(missing)}."))
    differing = comparison.differing_keys()
    if not differing:
        return section(title, paragraph("Nothing: the recipes are the same."))
    notes = ""
    if any(key.startswith("data.") for key, _ in differing):
        notes = paragraph("The data differ, so the metrics may not be of the same held-out examples.")
    header = ("key", *(each.label for each in comparison.runs))
    rows = [(key, *values) for key, values in differing]
    return section(title, notes + table("Keys whose values differ, and each run's value", header, rows))


def _versions(comparison: Comparison) -> str:
    differing = comparison.differing_versions()
    if not differing:
        return section("Versions", paragraph("All runs ran with the same versions."))
    header = ("package", *(each.label for each in comparison.runs))
    rows = [(key, *values) for key, values in differing]
    return section("Versions", table("Packages whose versions differ", header, rows))
