"""Running trials: take one, run it, tell its result, until there are enough."""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.objectives import Objective
from fedhq_lightning.experiments.pruning import Progress, TrialReporter
from fedhq_lightning.experiments.search_space import Space, make_space
from fedhq_lightning.experiments.study_check import ROUND
from fedhq_lightning.experiments.study_results import describe_parameters, describe_values
from fedhq_lightning.experiments.study_section import Section
from fedhq_lightning.experiments.study_storage import StudyPlace, load, told
from fedhq_lightning.experiments.trial_claims import Claims
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.report.formats import format_seconds
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.quiet import say_line
from fedhq_lightning.support.seeds import derive_seed
from fedhq_lightning.tracking import labelled

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial


@dataclass(frozen=True)
class StudyJob:
    """All that a worker needs to know; plain values, so that it can be sent to another process.

    Attributes:
        content: The resolved recipe.
        section: What is searched, and how.
        objectives: With their directions.
        place: The study's.
        seed: Of the samplers.
    """

    content: Mapping[str, Any]
    section: Section
    objectives: tuple[Objective, ...]
    place: StudyPlace
    seed: int

    def space(self) -> Space:
        """The search space."""
        return make_space(self.content, self.section.search)

    def sampler(self, number: int) -> Any:
        """Optuna's sampler for the trial of a number."""
        return self.section.make_sampler(derive_seed(self.seed, "trial", number))


def run_trials(job: StudyJob) -> bool:
    """Run trials one after another, until the study has as many as it shall have; prints a line about each.

    Returns:
        True: it got to the end.

    Raises:
        ConfigurationError: The storage fails; a trial that fails does not end the study.
    """
    _Worker(job).run()
    return True


class _Worker:
    def __init__(self, job: StudyJob) -> None:
        self._job = job
        self._space = job.space()
        self._study = load(job.place)
        self._claims = Claims(self._study, job.place.storage, job.place.folder, job.section.trials, job.sampler)

    def run(self) -> None:
        with self._claims.alive():
            while (trial := self._claims.next(self._space.distributions())) is not None:
                try:
                    self._run(trial)
                except KeyboardInterrupt:
                    self._claims.was_interrupted(trial)
                    raise

    def _run(self, trial: Trial) -> None:
        import optuna

        started = time.monotonic()
        try:
            values = self._values(trial)
        except optuna.TrialPruned as pruned:
            self._end(trial, "PRUNED", None, str(pruned))
            text = f"pruned {pruned}"
        except Exception as error:  # whatever a trial's values may lead to: the others go on
            is_own = isinstance(error, ConfigurationError)
            reason = str(error) if is_own else f"{type(error).__name__}: {error}"
            self._end(trial, "FAIL", None, reason, "" if is_own else traceback.format_exc())
            text = f"failed: {' '.join(reason.split())}"
        else:
            self._end(trial, "COMPLETE", values)
            text = describe_values(self._job.objectives, values)
        parameters = describe_parameters(self._space, trial.params)
        took = format_seconds(time.monotonic() - started)
        say_line(f"trial {trial.number} | {text} | {parameters} | wall {took}", sys.stdout)

    def _values(self, trial: Trial) -> list[float]:
        """Run the recipe with the trial's values; the objectives."""
        content = self._space.recipe(trial.params)
        content["trainer"] |= {"default_root_dir": str(self._job.place.folder), "enable_progress_bar": False}
        resolved = resolve(f"trial-{trial.number}", yaml.safe_dump(content, sort_keys=False))
        study = self._job.place.folder.name
        config = {"tune": {"study": study, "trial": trial.number, **trial.params}}
        labels = labelled(study, "trial", f"trial {trial.number}", config)
        with resolved.keys_named(), labels:
            trainer, model, data = resolved.instantiate()
            check_one_process(trainer)
            trainer.callbacks.append(self._reporter(trial))
            trainer.fit(model, data, _checkpointed(trial.user_attrs.get("run_dir")))
        values = [each.value(trainer.summary) for each in self._job.objectives]
        for each, value in zip(self._job.objectives, values, strict=True):
            if value is None:
                raise ConfigurationError(
                    f"{each.name} is not a finite number at the end of the run: {_given(each, trainer.summary)}"
                )
        return [value for value in values if value is not None]

    def _reporter(self, trial: Trial) -> TrialReporter:
        rounds = progress_of(self._study.get_trials(deepcopy=False)[trial.number], self._job.objectives).rounds
        known = dict(rounds)

        def start(run_dir: Path) -> None:
            with told(self._job.place.storage):
                trial.set_user_attr("run_dir", str(run_dir.absolute()))

        def report(number: int, values: Mapping[str, float]) -> None:
            known[number] = dict(values)
            if all(math.isfinite(value) for value in values.values()):  # JSON knows no other numbers
                with told(self._job.place.storage):
                    trial.set_user_attr(f"{ROUND}{number}", dict(values))

        def judge(max_rounds: int) -> str:
            rule = self._job.section.pruning
            if rule is None:
                return ""
            from optuna.trial import TrialState

            with told(self._job.place.storage):
                finished = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                others = [progress_of(each, self._job.objectives) for each in finished]
                running = Progress(trial.number, known, {})
                is_pruned, reason = rule.judge(running, others, self._job.objectives, max_rounds)
            return reason if is_pruned else ""

        return TrialReporter(self._job.objectives, start, report, judge)

    def _end(self, trial: Trial, state: str, values: list[float] | None, reason: str = "", where: str = "") -> None:
        """Tell the study, and leave a note in the trial's run directory."""
        from optuna.trial import TrialState

        with told(self._job.place.storage):
            if reason:
                trial.set_user_attr("reason", reason)
            if where:
                trial.set_user_attr("traceback", where)
            run_dir = trial.user_attrs.get("run_dir")
            self._study.tell(trial, values, state=TrialState[state])
        if run_dir is not None and Path(run_dir).is_dir():
            note = {
                "study": self._job.place.folder.name,
                "trial": trial.number,
                "state": state.lower(),
                "reason": reason,
                "parameters": {each.key: each.value(trial.params[each.key]) for each in self._space.parameters},
                "objectives": dict(zip([each.name for each in self._job.objectives], values or [], strict=False)),
            }
            write_atomically(Path(run_dir) / "trial.json", json.dumps(note, indent=2) + "\n")


def progress_of(trial: FrozenTrial, objectives: tuple[Objective, ...]) -> Progress:
    """What the study holds of a trial's rounds."""
    rounds = {
        int(name.removeprefix(ROUND)): values for name, values in trial.user_attrs.items() if name.startswith(ROUND)
    }
    values = dict(zip([each.name for each in objectives], trial.values or [], strict=False))
    return Progress(trial.number, dict(sorted(rounds.items())), values)


def check_one_process(trainer: Any) -> None:
    """Refuse recipes that start processes of their own.

    Raises:
        ConfigurationError: It does.
    """
    if trainer.fabric.world_size > 1 or trainer.fabric.strategy.launcher is not None:
        raise ConfigurationError(
            "a trial runs in one process: set trainer.devices=1 and trainer.num_nodes=1, and give --workers to run "
            "several trials at once"
        )


def _checkpointed(run_dir: str | None) -> Path | None:
    """The run to go on with, where an earlier worker of the trial got as far as a checkpoint."""
    if run_dir is None or not Path(run_dir).is_dir():
        return None
    path = Path(run_dir)
    return path if RunDirectory(path).saved_checkpoints() else None


def _given(objective: Objective, summary: Mapping[str, Any]) -> str:
    node: Any = summary
    for part in objective.name.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return "the run's metric is NaN or infinite, or was never evaluated" if node is None else str(node)
