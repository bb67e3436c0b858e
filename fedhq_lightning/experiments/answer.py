"""What a comparison came to, in a sentence or two."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedhq_lightning.experiments.outcomes import Row
from fedhq_lightning.experiments.side_by_side import RunsSideBySide
from fedhq_lightning.experiments.side_by_side_tables import difference_text, metric_text, spread_text
from fedhq_lightning.experiments.statistics import Difference
from fedhq_lightning.report.formats import format_metric


def answer(rows: Sequence[Row], baseline: str, deployed_on: str, larger_is_better: bool) -> str:
    """Which deployed model is best, by how much, and whether that may be chance.

    Args:
        rows: One for each that is compared.
        baseline: Whom differences are against.
        deployed_on: The metric that is told of the deployed models.
        larger_is_better: Whether more of it is.

    Returns:
        Plain text; empty where no model has a value.
    """
    known = [row for row in rows if not math.isnan(row.deployed.mean)]
    if not known:
        return ""
    ranked = sorted(known, key=lambda row: row.deployed.mean, reverse=larger_is_better)
    best, *others = ranked
    over = f" over {best.deployed.count} seeds" if best.deployed.count > 1 else ""
    text = f"Best deployed model: {best.name}, {deployed_on} {spread_text(best.deployed, metric_text)}{over}"
    if best.name != baseline:
        return f"{text}{_told(f'less {baseline}', best.deployed_difference)}."
    if others:
        return f"{text}{_told(f'next {others[0].name}, less it', others[0].deployed_difference)}."
    return f"{text}."


def answer_of_runs(runs: RunsSideBySide) -> str:
    """Likewise of single runs."""
    finals = [(final, each.label) for each in runs.runs if (final := each.run.final) is not None]
    if runs.direction is None or not finals:
        return ""
    (best, name), *others = sorted(finals, key=lambda each: each[0], reverse=runs.direction == "max")
    rest = f"; next {others[0][1]}, {format_metric(others[0][0])}" if others else ""
    return f"Best at its best round: {name}, {runs.metric_name} {format_metric(best)}{rest}."


def _told(of_what: str, difference: Difference) -> str:
    if math.isnan(difference.mean):
        return ""
    chance = "beyond chance at 95 %" if difference.is_beyond_noise else "which may be chance"
    chance = "of too few seeds to be told from chance" if math.isnan(difference.low) else chance
    return f"; {of_what}: {difference_text(difference)}, {chance}"
