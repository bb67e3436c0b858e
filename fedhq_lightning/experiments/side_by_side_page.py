"""The pages of what stands side by side: finished runs (`fedhq report A B`), or cells (`fedhq compare`)."""

from collections.abc import Sequence

from fedhq_lightning.experiments.answer import answer_of_runs
from fedhq_lightning.experiments.cells import Cell
from fedhq_lightning.experiments.outcomes import Outcome
from fedhq_lightning.experiments.side_by_side import (
    RunsSideBySide,
    cells_by_name,
    entries_of,
    quantized_name,
    what_is_compared,
)
from fedhq_lightning.experiments.side_by_side_figures import time_to_target_svg
from fedhq_lightning.experiments.side_by_side_sections import (
    curves_section,
    differing_table,
    totals_section,
    versions_section,
)
from fedhq_lightning.experiments.side_by_side_tables import TextTable
from fedhq_lightning.recipe.identity import differing
from fedhq_lightning.report.formats import format_metric, format_seconds
from fedhq_lightning.report.page import contents, figure, lead, page, paragraph, section, table
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.run import Clock

_CLOCKS = "Wall time was measured on the host of each run; virtual time is what the modelled fleet would have taken. "
_OF_RUNS = _CLOCKS + "The quantized metric is that of the deployable model, at the best round of each run."
_OF_CELLS = _CLOCKS + "The quantized metric is that of the deployable model; runs of one seed are paired."
_RUN_HEADER = ("run", "recipe", "folder", "scheme", "rounds", "best round", "seed")
_AXES: tuple[tuple[Clock, str], ...] = (
    ("virtual", "As the modelled fleets would have taken."),
    ("round", "Rounds of different length count alike here."),
)


def runs_page(runs: RunsSideBySide) -> str:
    """The whole document on several runs.

    Args:
        runs: Two or more.
    """
    entries, labels = runs.entries(), [each.label for each in runs.runs]
    sections = [
        _runs(runs),
        curves_section(entries, runs.metric_name, _AXES, runs.target),
        _finals(runs),
        totals_section(entries, "run"),
        _recipes(runs),
        versions_section(labels, [each.run.summary.get("versions") or {} for each in runs.runs]),
    ]
    return _page(f"{len(labels)} runs side by side", runs.metric_name, answer_of_runs(runs), _OF_RUNS, sections)


def cells_page(
    cells: Sequence[Cell], found: Sequence[Outcome], answer: str, tables: Sequence[TextTable], remarks: Sequence[str]
) -> str:
    """The whole document on what a comparison compares.

    Args:
        cells: One or more.
        found: What each came to.
        answer: All of it in a sentence.
        tables: What they came to over their seeds.
        remarks: What the tables mean.
    """
    entries, name, what = entries_of(cells), cells[0].metric_name, what_is_compared(cells)
    results = "\n".join(table(each.title, each.columns, each.rows) for each in tables)
    results += "".join(map(paragraph, remarks))
    times = []
    if picture := time_to_target_svg(found, as_file=False):
        note = "Point: a seed; arrow: not reached until then; bar: mean."
        times = [figure("Virtual time to the target", note, picture)]
    versions = [cell.summary.get("versions") or {} for cell in cells]
    sections = [
        curves_section(entries, quantized_name(cells), _AXES, None, times),
        section("Results", results),
        totals_section(entries, what),
        _made_with(cells, what),
        versions_section([f"{cell.name}, seed {cell.seed}" for cell in cells], versions),
    ]
    count = f"{len(entries)} {what}s" if len(entries) > 1 else f"One {what}"
    return _page(f"{count} side by side", name, answer, _OF_CELLS, sections)


def _page(title: str, metric_name: str, answer: str, introduction: str, sections: Sequence[str]) -> str:
    top = f"<h1>{title}</h1>\n{lead(answer) if answer else ''}{paragraph(introduction)}{contents(sections)}"
    return page(f"{title}: {metric_name}", "\n".join((top, *sections)))


def _runs(runs: RunsSideBySide) -> str:
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
        for each in runs.runs
    ]
    return section("Runs", table("The runs, and what this page calls them", _RUN_HEADER, rows))


def _finals(runs: RunsSideBySide) -> str:
    name, target = runs.metric_name, runs.target
    header = ["run", "quantized", "fp"]
    if target is not None:
        header += [f"{what} until {format_metric(target)}" for what in ("rounds", "wall", "virtual")]
    rows = []
    for each in runs.runs:
        summary = each.run.summary
        row = [each.label, format_metric(summary.get("metric_quantized")), format_metric(summary.get("metric_fp"))]
        if target is not None:
            row += _when(runs.reached(each))
        rows.append(row)
    said = "A run has no final value, so no time to reach the worst one is told."
    if target is not None:
        said = f"The worst final is {format_metric(target)}; told is when each run was as good for the first time."
    elif runs.direction is None:
        said = "The runs do not tell whether more or less of the metric is better, so no times to reach it are told."
    return section("Finals", paragraph(said) + table(f"{name} of each run at its best round", header, rows))


def _when(record: RoundRecord | None) -> list[str]:
    if record is None:
        return ["-", "-", "-"]
    wall, virtual = format_seconds(record.total_wall_seconds), format_seconds(record.total_virtual_seconds)
    return [str(record.round), wall, virtual]


def _recipes(runs: RunsSideBySide) -> str:
    title = "What differs in the recipes"
    missing = [each.label for each in runs.runs if not each.run.recipe]
    if missing:
        return section(title, paragraph(f"Not told: no recipe.yaml in {', '.join(missing)}."))
    found = runs.differing_keys()
    if not found:
        return section(title, paragraph("Nothing: the recipes are the same."))
    notes = ""
    if any(key.startswith("data.") for key, _ in found):
        notes = paragraph("The data differ, so the metrics may not be of the same held-out examples.")
    caption = "Keys whose values differ, and each run's value"
    return section(title, notes + differing_table("key", caption, [each.label for each in runs.runs], found))


def _made_with(cells: Sequence[Cell], what: str) -> str:
    title = f"What differs between the {what}s"
    groups = cells_by_name(cells)
    found = differing([group[0].described for group in groups.values()])
    if not found:
        return section(title, paragraph("Nothing."))
    rows = [(key.removeprefix("varied."), values) for key, values in found]
    return section(title, differing_table("key", "What each is made with", list(groups), rows))
