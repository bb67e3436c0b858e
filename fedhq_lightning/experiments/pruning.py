"""Ending hopeless trials early, with several objectives too.

Optuna prunes in studies of one objective only. Here its own percentile rule judges the metric, round by round, in a
view of the study that has the metric alone; and what it condemns is spared as long as the trial may still be better
than every finished one in another objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.objectives import COSTS, METRICS, Objective, totals
from fedhq_lightning.federated.callback import RoundCallback, RoundControl
from fedhq_lightning.report.formats import format_metric
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.types import Plan


@dataclass(frozen=True)
class Progress:
    """How a trial went.

    Attributes:
        number: The trial's.
        rounds: Round -> the objectives' values so far; evaluated rounds only.
        values: The objectives' values at its end, by name; empty while it runs.
    """

    number: int
    rounds: Mapping[int, Mapping[str, float]]
    values: Mapping[str, float]


@dataclass(frozen=True)
class PruningRule:
    """When a trial is pruned.

    Args:
        percentile: A trial may go on while its metric is among this best share of the finished trials, 0 to 100;
            50 is the median.
        startup_trials: Trials that must have finished first.
        warmup_rounds: Rounds in which nothing is pruned.
        every_n_rounds: Rounds from one judgement to the next.

    Raises:
        ConfigurationError: A value outside its range.
    """

    percentile: float = 50.0
    startup_trials: int = 5
    warmup_rounds: int = 1
    every_n_rounds: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("percentile", 0, 100),
            ("startup_trials", 1, None),
            ("warmup_rounds", 0, None),
            ("every_n_rounds", 1, None),
        ):
            value = getattr(self, name)
            is_number = isinstance(value, int | float if name == "percentile" else int) and not isinstance(value, bool)
            if not is_number or value < low or (high is not None and value > high):
                allowed = f"from {low} to {high}" if high is not None else f"a whole number, {low} or more"
                raise ConfigurationError(f"pruning: {name} {value!r} must be {allowed}")

    def check(self, objectives: Sequence[Objective]) -> None:
        """Refuse objectives that cannot be judged before a run's end.

        Raises:
            ConfigurationError: There is one, or no metric among them.
        """
        if not any(each.name in METRICS for each in objectives):
            raise ConfigurationError(f"pruning judges a metric, and {' or '.join(METRICS)} is not among the objectives")
        for each in objectives:
            if each.name not in METRICS + COSTS:
                raise ConfigurationError(
                    f"pruning: {each.name} is not known before a run's end; leave it out of the objectives, or pruning"
                )
            if each.name in COSTS and each.direction == "max":
                raise ConfigurationError(f"pruning: {each.name} with direction max grows to the end; leave pruning out")

    def judge(
        self, trial: Progress, finished: Sequence[Progress], objectives: Sequence[Objective], max_rounds: int
    ) -> tuple[bool, str]:
        """Whether to prune a trial after its latest round, and why.

        Pruned is what is both behind and dominated. Behind: Optuna's percentile rule says so of the metric. Dominated:
        one finished trial had a metric at this round at least as good as the best that this trial has had, and its
        final costs are at most those that this trial is heading for (its costs so far, times its rounds in all over its
        rounds done). With the metric as the only objective the second follows from the first.

        Args:
            trial: With the round that has just ended as its latest.
            finished: Complete trials.
            objectives: Those of the study, checked.
            max_rounds: Of the trial.
        """
        round_number = max(trial.rounds, default=0)
        if round_number == 0:
            return False, ""
        metric = next(each for each in objectives if each.name in METRICS)
        if not self._is_behind(trial, finished, metric):
            return False, ""
        for other in finished:
            if _dominates(other, trial, objectives, round_number, max_rounds):
                now, then = (each.rounds[round_number][metric.name] for each in (trial, other))
                return True, (
                    f"after round {round_number} of {max_rounds}: {metric.name} {format_metric(now)} is behind the "
                    f"best {self.percentile:g} % of {len(finished)} trials, and trial {other.number} had "
                    f"{format_metric(then)} there, at no higher cost"
                )
        return False, ""

    def _is_behind(self, trial: Progress, finished: Sequence[Progress], metric: Objective) -> bool:
        import optuna
        from optuna.trial import TrialState, create_trial

        view = optuna.create_study(direction=metric.optuna_direction)
        for other in finished:
            view.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    value=other.values[metric.name],
                    intermediate_values=_curve(other, metric.name),
                )
            )
        pruner = optuna.pruners.PercentilePruner(
            float(self.percentile),
            n_startup_trials=self.startup_trials,
            n_warmup_steps=self.warmup_rounds + 1,
            interval_steps=self.every_n_rounds,
        )
        judged = create_trial(state=TrialState.RUNNING, intermediate_values=_curve(trial, metric.name))
        return bool(pruner.prune(view, judged))


class TrialReporter(RoundCallback):
    """Tells the study of every evaluated round, and ends the run that is pruned.

    The run ends before the next round begins, when everything about the last one is written.

    Args:
        objectives: Those of the study.
        reported: Round -> values so far that a run before this one, which it goes on with, has reported.
        on_start: Called with the run directory.
        report: Called with an evaluated round and the values so far.
        judge: Called then, with the rounds so far and the trainer's `max_rounds`; gives the reason to prune, or "".
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        on_start: Callable[[Path], None],
        report: Callable[[int, Mapping[str, float]], None],
        judge: Callable[[int], str],
    ) -> None:
        self._objectives = objectives
        self._on_start = on_start
        self._report = report
        self._judge = judge
        self._totals: dict[str, float] = {}
        self._reason = ""

    def state_dict(self) -> dict[str, Any]:
        """What the rounds so far have cost."""
        return {name: value for name, value in self._totals.items() if name in COSTS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._totals = dict(state)

    def on_fit_start(self, trainer: RoundControl) -> None:
        """Tell where the run is."""
        self._on_start(trainer.run_dir)

    def on_round_end(self, trainer: RoundControl, record: RoundRecord) -> None:
        """Report, and judge."""
        self._totals = totals(self._objectives, record, self._totals)
        if record.round > 0 and record.monitored is not None:
            self._report(record.round, self._totals)
            self._reason = self._judge(trainer.settings.max_rounds)

    def on_round_start(self, trainer: RoundControl, round_number: int, plan: Plan) -> None:
        """End what was judged hopeless."""
        if self._reason:
            import optuna

            raise optuna.TrialPruned(self._reason)


def _curve(trial: Progress, name: str) -> dict[int, float]:
    return {number: values[name] for number, values in trial.rounds.items() if name in values}


def _dominates(
    other: Progress, trial: Progress, objectives: Sequence[Objective], round_number: int, max_rounds: int
) -> bool:
    at_round = other.rounds.get(round_number, {})
    for each in objectives:
        if each.name in METRICS:
            best = (max if each.direction == "max" else min)(_curve(trial, each.name).values())
            if each.name not in at_round or each.is_better(best, at_round[each.name]):
                return False
        elif trial.rounds[round_number][each.name] / round_number * max_rounds < other.values[each.name]:
            return False
    return True
