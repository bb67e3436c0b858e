"""What a study leaves: `trials.csv`, a picture, the best trial's recipe and those of the Pareto front."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedhq_lightning.experiments.objectives import METRICS, Objective
from fedhq_lightning.experiments.search_space import Space
from fedhq_lightning.experiments.study_figure import Point, study_svg
from fedhq_lightning.report.final_table import aligned
from fedhq_lightning.report.formats import format_bytes, format_metric, format_seconds
from fedhq_lightning.support.atomic_files import told_to_user, write_atomically

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def complete_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that have values."""
    from optuna.trial import TrialState

    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def front_of(trials: Sequence[FrozenTrial], objectives: Sequence[Objective]) -> list[FrozenTrial]:
    """The complete trials that no other one beats; with one objective, the best one.

    Best first, by the metric where there is one, else by the first objective. Of trials with the same values the first
    is taken.
    """
    complete = complete_trials(trials)
    front = [
        trial
        for trial in complete
        if not any(_dominates(other, trial, objectives) or _is_twin(other, trial) for other in complete)
    ]
    chosen = _chosen(objectives)
    order = [chosen, *(index for index in range(len(objectives)) if index != chosen)]

    def rank(trial: FrozenTrial) -> list[float]:
        return [trial.values[index] * (-1 if objectives[index].direction == "max" else 1) for index in order]

    return sorted(front, key=rank)


def write_results(
    folder: Path, recipe_name: str, space: Space, objectives: Sequence[Objective], trials: Sequence[FrozenTrial]
) -> None:
    """Write the files whole; those of trials that are no longer on the front go.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    write_atomically(folder / "trials.csv", _table(space, objectives, trials))
    front = front_of(trials, objectives)
    if not front:
        return
    numbers = {trial.number for trial in front}
    write_atomically(folder / "best.yaml", _recipe("best", front[0], folder, recipe_name, space, objectives))
    if len(objectives) > 1:
        recipes = folder / "front"
        with told_to_user(recipes):
            recipes.mkdir(exist_ok=True)
            for path in recipes.glob("trial-*.yaml"):
                if path.stem not in {f"trial-{number}" for number in numbers}:
                    path.unlink(missing_ok=True)
        for trial in front:
            name = f"trial-{trial.number}"
            text = _recipe(name, trial, recipes, recipe_name, space, objectives)
            write_atomically(recipes / f"{name}.yaml", text)
    picture = folder / ("pareto.svg" if len(objectives) > 1 else "history.svg")
    if drawn := study_svg(objectives, _points(trials, objectives, numbers)):
        write_atomically(picture, drawn)


def front_table(space: Space, objectives: Sequence[Objective], trials: Sequence[FrozenTrial]) -> str:
    """The front, or the best trial of a study with one objective, as aligned text."""
    front = front_of(trials, objectives)
    rows = [["trial", *(each.name for each in objectives), *space.short_names()]]
    for trial in front:
        values = [describe_value(each.name, value) for each, value in zip(objectives, trial.values, strict=True)]
        parameters = [describe_parameter(each.value(trial.params[each.key])) for each in space.parameters]
        rows.append([str(trial.number), *values, *parameters])
    title = (
        "best trial" if len(objectives) == 1 else f"Pareto front, {len(front)} of {len(complete_trials(trials))} trials"
    )
    return "\n".join([title, *aligned(rows)])


def _dominates(other: FrozenTrial, trial: FrozenTrial, objectives: Sequence[Objective]) -> bool:
    pairs = list(zip(objectives, other.values, trial.values, strict=True))
    return not any(each.is_better(ours, its) for each, its, ours in pairs) and any(
        each.is_better(its, ours) for each, its, ours in pairs
    )


def _is_twin(other: FrozenTrial, trial: FrozenTrial) -> bool:
    return bool(other.values == trial.values and other.number < trial.number)


def _chosen(objectives: Sequence[Objective]) -> int:
    return next((index for index, each in enumerate(objectives) if each.name in METRICS), 0)


def _points(trials: Sequence[FrozenTrial], objectives: Sequence[Objective], front: set[int]) -> list[Point]:
    points: list[Point] = []
    best: float | None = None
    for trial in complete_trials(trials):
        is_best = trial.number in front
        if len(objectives) == 1:
            is_best = best is None or objectives[0].is_better(trial.values[0], best)
            best = trial.values[0] if is_best else best
        points.append(Point(trial.number, trial.values, is_best))
    return points


def _table(space: Space, objectives: Sequence[Objective], trials: Sequence[FrozenTrial]) -> str:
    text = io.StringIO()
    names = [each.name for each in objectives]
    keys = [each.key for each in space.parameters]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *names, *keys, "on_front", "seconds", "reason", "run_dir"])
    front = {trial.number for trial in front_of(trials, objectives)}
    for trial in trials:
        values = trial.values if trial.values is not None and len(trial.values) == len(names) else [""] * len(names)
        parameters = [
            each.value(trial.params[each.key]) if each.key in trial.params else "" for each in space.parameters
        ]
        took = trial.duration.total_seconds() if trial.duration is not None else ""
        attributes: Mapping[str, Any] = trial.user_attrs
        writer.writerow(
            [
                trial.number,
                trial.state.name.lower(),
                *values,
                *parameters,
                int(trial.number in front),
                took,
                attributes.get("reason", ""),
                attributes.get("run_dir", ""),
            ]
        )
    return text.getvalue()


def _recipe(
    name: str,
    trial: FrozenTrial,
    folder: Path,
    recipe_name: str,
    space: Space,
    objectives: Sequence[Objective],
) -> str:
    """A trial's recipe, resolved, with a header that says where it comes from."""
    parameters = {each.key: each.value(trial.params[each.key]) for each in space.parameters}
    header = [
        f"# {name}: trial {trial.number} of a study over {recipe_name}: {describe_values(objectives, trial.values)}",
        *(f"#           {key}: {value!r}" for key, value in parameters.items()),
        f"# Run:      fedhq run {folder / f'{name}.yaml'}",
    ]
    body = yaml.safe_dump(space.recipe(trial.params), sort_keys=False, allow_unicode=True)
    return "\n".join(header) + "\n" + str(body)


def describe_value(name: str, value: float) -> str:
    """A number with its unit."""
    if name.endswith("_seconds"):
        return format_seconds(value)
    if name.endswith("_bytes"):
        return format_bytes(value)
    return format_metric(value) if "metric" in name else f"{value:g}"


def describe_values(objectives: Sequence[Objective], values: Sequence[float]) -> str:
    """Every objective with its value."""
    return ", ".join(
        f"{each.name} {describe_value(each.name, value)}" for each, value in zip(objectives, values, strict=True)
    )


def describe_parameters(space: Space, suggested: Mapping[str, Any]) -> str:
    """Every searched key, shortened, with its value."""
    return ", ".join(
        f"{name} {describe_parameter(each.value(suggested[each.key]))}"
        for name, each in zip(space.short_names(), space.parameters, strict=True)
        if each.key in suggested
    )


def describe_parameter(value: Any) -> str:
    """Floats in four digits; everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
