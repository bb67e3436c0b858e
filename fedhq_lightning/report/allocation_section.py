"""The report's section on the boundary: why it is where it is, the map of the clients, and how it moved."""

import re
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from fedhq_lightning.report.allocation_figures import boundary_svg, describe_boundary, map_svg
from fedhq_lightning.report.formats import format_modes, format_seconds
from fedhq_lightning.report.page import figure, figures, folded, paragraph, section, table
from fedhq_lightning.run.allocation import Allocation, RoundBoundary, trial_windows
from fedhq_lightning.run.run import Run

_TITLE = "How the clients were allotted"
_TOPIC = re.compile(r"(?<=\.) (?=[A-Z]\w+: )")
"""Where the allocator's paragraph turns to another topic, such as `Data: `."""
_HEADER = ("rounds", "trial", "slack", "share", "steps", "T of its first round, virtual", "rho", "objective", "why")
_HOW_TO_READ = (
    "A client in the shaded region trains in QAT: left of T it can take enough of its steps in time, above rho it "
    "takes all of them, however long that lasts. T follows the slowest client of the round's cohort. "
    "Filled: took part in that round, coloured by the mode it trained in. Hollow: was not in its cohort, coloured by "
    "what the boundary would have given it. Times and risks are as known at the end of the run."
)


def boundary_section(run: Run) -> str:
    """How the clients were allotted; empty where the allocator left no `allocation.json`."""
    if run.allocation_problem:
        return section(_TITLE, paragraph(f"Not shown: {run.allocation_problem}."))
    allocation = run.allocation
    if allocation is None:
        return ""
    parts = [paragraph(part) for part in _TOPIC.split(allocation.explanation) if part]
    pictures = _maps(run, allocation) + _course(allocation)
    if pictures:
        parts.append(f"<h3>How to read the maps</h3>\n{paragraph(_HOW_TO_READ)}{figures(pictures, in_rows=True)}\n")
    if allocation.boundaries:
        caption = "Boundaries, the rounds planned with each, and why"
        parts.append(folded("Every boundary", table(caption, _HEADER, _rows(allocation))))
    return section(_TITLE, "".join(parts))


def _maps(run: Run, allocation: Allocation) -> list[str]:
    if not allocation.clients:
        return []
    risks = [client.risk for client in allocation.clients]
    total = len(allocation.clients)
    pictures = []
    for boundary in allocation.telling_boundaries():
        trained = {
            client.client_id: client.modes[boundary.round] for client in run.clients if boundary.round in client.modes
        }
        modes = list(trained.values())
        counts = format_modes({mode: modes.count(mode) for mode in set(modes)})
        note = f"{describe_boundary(boundary, risks)}. Trained: {counts}."
        if total < len(run.clients):
            note += f" {total:,} of all clients are shown."
        description = f"Scatter plot: clients by virtual time in QAT and by risk. Round {boundary.round}: {note}"
        svg = map_svg(f"map-{boundary.round}", description, allocation, boundary, trained)
        pictures.append(figure(f"Allocation map, round {boundary.round}", note, svg))
    return pictures


def _course(allocation: Allocation) -> list[str]:
    """How the boundary moved, where it did."""
    boundaries = allocation.boundaries
    if len({(each.trial, *each.numbers) for each in boundaries}) < 2:
        return []
    note = _summary(boundaries)
    svg = boundary_svg("boundary", f"Line plot: slack and share of the boundary by round. {note}", boundaries)
    return [figure("The boundary by round", note, svg)]


def _summary(boundaries: Sequence[RoundBoundary]) -> str:
    challengers = {each.trial for each in boundaries if each.trial != each.incumbent}
    changes = [now for before, now in pairwise(boundaries) if now.incumbent != before.incumbent]
    tried = f"{len(challengers)} {'boundary' if len(challengers) == 1 else 'boundaries'} tried against the incumbent."
    if not changes:
        return f"{tried} The incumbent, trial {boundaries[-1].incumbent}, was kept throughout."
    return f"{tried} Trial {changes[-1].incumbent} is the incumbent since round {changes[-1].round}."


def _rows(allocation: Allocation) -> list[tuple[str, ...]]:
    objectives = {
        each.judged: each.objective
        for each in allocation.boundaries
        if each.judged is not None and each.objective is not None
    }
    rows: list[tuple[str, ...]] = []
    for window in trial_windows(allocation.boundaries):
        first, last = window[0], window[-1]
        objective = objectives.get(first.trial)
        rows.append(
            (
                str(first.round) if first is last else f"{first.round} to {last.round}",
                str(first.trial),
                f"{first.slack:.3g}",
                f"{first.share:.3g}",
                f"{fmean(each.work for each in window):.0%}",
                format_seconds(first.seconds),
                f"{first.risk:.3g}",
                "-" if objective is None else f"{objective:+.3f}",
                first.reason or "-",
            )
        )
    return rows
