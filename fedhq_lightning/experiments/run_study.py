"""`fedhq tune`: check a search, run its trials in one or several processes, and write what came of them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.objectives import Direction, parse_objectives
from fedhq_lightning.experiments.search_space import Space, make_space
from fedhq_lightning.experiments.study_check import check_trials
from fedhq_lightning.experiments.study_results import complete_trials, front_table, write_results
from fedhq_lightning.experiments.study_section import Section, parse_section, pruning_as_json, read_section
from fedhq_lightning.experiments.study_storage import default_place, join, load, told
from fedhq_lightning.experiments.trial_claims import Claims
from fedhq_lightning.experiments.trial_runs import StudyJob, check_one_process, run_trials
from fedhq_lightning.experiments.workers import Ended, Workers
from fedhq_lightning.federated import setup
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.recipe.identity import without_free
from fedhq_lightning.support.quiet import say_line
from fedhq_lightning.support.yaml_text import parse_yaml

if TYPE_CHECKING:
    from optuna import Study


def tune_recipe(
    recipe: str,
    overrides: Sequence[str] = (),
    search: str | None = None,
    trials: int | None = None,
    workers: int = 1,
    storage: str | None = None,
) -> Path:
    """Run a study over a recipe, or go on with one.

    Args:
        recipe: A shipped recipe's name, or a file.
        overrides: As `fedhq run` takes them; they hold for every trial.
        search: File in place of the recipe's `tune` section.
        trials: Trials of the study in all, in place of the section's.
        workers: Processes that run trials.
        storage: A tune folder, a journal file, or a database's URL; a new folder by default.

    Returns:
        The tune folder.

    Raises:
        ConfigurationError: What can be known before the first trial to be wrong with recipe, search or storage; or
            every trial failed.
        KeyboardInterrupt: Ctrl-C, or another signal to end; the message says how to go on.
    """
    if workers < 1:
        raise ConfigurationError(f"--workers {workers} must be 1 or more")
    job, name = _prepare(recipe, overrides, search, trials, storage)
    space = job.space()
    study, place = join(job.place, _design(job, name), job.objectives)
    with told(place.storage):
        check_trials(study.get_trials(deepcopy=False), space, len(job.objectives))
    job = StudyJob(job.content, job.section, job.objectives, place, job.seed)
    _enqueue_own_values(study, space, job)
    say_line(f"study {place.folder.name}: {_plan(job, study)}; storage {place.storage}", sys.stdout)
    try:
        if workers == 1:
            run_trials(job)
        else:
            _run_workers(job, workers)
    except KeyboardInterrupt as interruption:
        _write(job, name, space)
        again = ["fedhq", "tune", recipe, *(["--search", search] if search else []), *overrides]
        again += [*(["--trials", str(trials)] if trials else []), "--storage", place.storage]
        interruption.args = (f"; go on with: {shlex.join(again)}",)
        raise
    done = _write(job, name, space)
    if not complete_trials(done):
        failed = [trial for trial in done if "reason" in trial.user_attrs]
        if not failed:
            raise ConfigurationError("no trial has ended yet; those that run go on in other processes")
        first = failed[0]
        raise ConfigurationError(
            f"all {len(failed)} trials failed; the first, trial {first.number}: {first.user_attrs['reason']}"
        )
    say_line(front_table(space, job.objectives, done), sys.stdout)
    best = os.path.relpath(place.folder / "best.yaml")
    say_line(
        f"trials, picture and recipes: {os.path.dirname(best)}; the best by {job.objectives[0].name} is run by",
        sys.stdout,
    )
    say_line(f"fedhq run {shlex.quote(best)}", sys.stdout)
    return place.folder


def _prepare(
    recipe: str, overrides: Sequence[str], search: str | None, trials: int | None, storage: str | None
) -> tuple[StudyJob, str]:
    """Everything that can be checked before there is a study."""
    name, text = recipe_files.find(recipe)
    resolved = resolve(name, text, overrides)
    content: dict[str, Any] = parse_yaml(resolved.recipe.text)
    given = read_section(text, search)
    with _naming_section(search):
        section = parse_section(given, trials)
        space = make_space(content, section.search)
    mode = _check_start(name, space)
    with _naming_section(search):
        objectives = parse_objectives(section.objectives, mode)
        if section.pruning is not None:
            section.pruning.check(objectives)
        _check_candidates(name, space)
    place = default_place(Path(content["trainer"]["default_root_dir"]), name, storage)
    seed = content["trainer"]["seed"] if section.seed is None else section.seed
    return StudyJob(content, section, objectives, place, seed), name


@contextmanager
def _naming_section(search: str | None) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"tune: {error}" if search is None else f"--search {search}: {error}") from error


def _check_start(name: str, space: Space) -> Direction:
    """Set up a run with the recipe's own values, where it has some; the direction of its metric."""
    resolved = resolve(name, yaml.safe_dump(space.start(), sort_keys=False))
    with resolved.keys_named():
        trainer, model, data = resolved.instantiate()
        check_one_process(trainer)
        return setup.set_up(trainer.settings, trainer.fabric, model, data).monitored.mode


def _check_candidates(name: str, space: Space) -> None:
    """Refuse values that the recipe's classes refuse."""
    for key, value, content in space.variations():
        try:
            resolved = resolve(name, yaml.safe_dump(content, sort_keys=False))
            with resolved.keys_named():
                resolved.instantiate()
        except ConfigurationError as error:
            raise ConfigurationError(f"search: {key}: the recipe refuses {value!r}: {error}") from error


def _design(job: StudyJob, name: str) -> dict[str, Any]:
    """What makes this study another than others; settings that change no bit of a run are left out."""
    section: Section = job.section
    return {
        "format": 1,
        "recipe": {"name": name, **without_free(job.content)},
        "search": dict(section.search),
        "objectives": {each.name: each.direction for each in job.objectives},
        "sampler": dict(section.sampler),
        "seed": job.seed,
        "pruning": pruning_as_json(section.pruning),
    }


def _enqueue_own_values(study: Study, space: Space, job: StudyJob) -> None:
    """Try the recipe as it is first, where the search holds it."""
    own = space.own_values()
    claims = Claims(study, job.place.storage, job.place.folder, 0, job.sampler)
    with claims.alone(), told(job.place.storage):
        if own is not None and not study.get_trials(deepcopy=False):
            study.enqueue_trial(own)


def _plan(job: StudyJob, study: Study) -> str:
    from optuna.trial import TrialState

    with told(job.place.storage):
        done = sum(each.state != TrialState.WAITING for each in study.get_trials(deepcopy=False))
    names = ", ".join(f"{each.name} ({each.direction})" for each in job.objectives)
    return f"{job.section.trials} trials{f', {done} of them there already' if done else ''}; {names}"


def _write(job: StudyJob, name: str, space: Space) -> list[Any]:
    """The study's files, as of now; its trials."""
    study = load(job.place)
    claims = Claims(study, job.place.storage, job.place.folder, 0, job.sampler)
    with claims.alone():
        with told(job.place.storage):
            trials = study.get_trials(deepcopy=False)
        write_results(job.place.folder, name, space, job.objectives, trials)
    return trials


def _run_workers(job: StudyJob, workers: int) -> None:
    """Processes that share the trials; one that dies does not end the others.

    Raises:
        ConfigurationError: Every one ended with an error; that of the first.
    """
    pool: Workers[StudyJob, bool]
    with Workers(run_trials, workers) as pool:
        for _ in range(workers):
            pool.start(job)
        ends = [_told(pool.wait()) for _ in range(workers)]
    if not any(end.result for end in ends):
        refusals = [end.error for end in ends if isinstance(end.error, ConfigurationError)]
        if len(refusals) == workers:
            raise refusals[0]
        raise ConfigurationError("no worker got to the end of the study; go on with it by the same --storage")


def _told(end: Ended[StudyJob, bool]) -> Ended[StudyJob, bool]:
    if not end.result and not isinstance(end.error, ConfigurationError):
        how = f"exit code {end.exit_code}" if end.error is None else f"{type(end.error).__name__}: {end.error}"
        say_line(
            f"worker {end.worker} ended early ({how}); its trial is taken up by the others, or when the study goes on",
            sys.stdout,
        )
    return end
