"""The recipe of each cell, and running cells: one after another here, or several at once in other processes."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.cells import cell_of_run, name_of, write_cell
from fedhq_lightning.experiments.contestants import Contestant
from fedhq_lightning.experiments.workers import Workers
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe.identity import without_free
from fedhq_lightning.run.run import Run
from fedhq_lightning.run.run_names import LONGEST_NAME
from fedhq_lightning.support.yaml_text import parse_yaml
from fedhq_lightning.tracking import labelled


@dataclass(frozen=True)
class CellJob:
    """A cell that is still to be run.

    Attributes:
        allocator: Name of the allocator; empty for the recipe's own.
        setting: What the varied keys hold; empty where none is varied.
        seed: Of the run.
        recipe_name: Name of the recipe.
        text: The resolved recipe, with the varied keys in it.
        contestant: The allocator.
        described: What it is made with, and matched to, and the varied keys' values.
        fingerprint: Of everything that decides the run.
        cell: Where the cell is to be kept.
        runs: Where the run directory is made; the cell's alone.
        reference: A cell that must be there before; or None.
        group: Group of its run at a tracker.
        keeps_run: Whether the run directory stays once the cell is kept.
    """

    allocator: str
    setting: str
    seed: int
    recipe_name: str
    text: str
    contestant: Contestant
    described: dict[str, Any]
    fingerprint: str
    cell: Path
    runs: Path
    reference: Path | None
    group: str
    keeps_run: bool

    @property
    def name(self) -> str:
        """What its cell is called beside the others of its seed."""
        return name_of(self.allocator, self.setting)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def run_job(job: CellJob) -> float:
    """Run one cell, or go on with a run of it that was stopped, and keep it.

    Returns:
        Wall seconds that it took now.

    Raises:
        ConfigurationError: The recipe or the allocator does not work.
    """
    started = time.perf_counter()
    labels = labelled(job.group, job.name, str(job))
    try:
        text = cell_recipe(job.text, job.contestant, job.seed, job.runs, job.reference)
        resolved = resolve(job.recipe_name, text, [f"--trainer.name={job.cell.stem[-LONGEST_NAME:].lstrip('-_.+=')}"])
        with resolved.keys_named(), labels:
            trainer, module, data = resolved.instantiate()
            trainer.writes_model = job.keeps_run or bool(trainer.logger)
            trainer.fit(module, data, _stopped_run(job.runs))
    except ConfigurationError as error:
        raise ConfigurationError(f"{job}: {error}") from error
    larger_is_better = trainer.monitored.mode != "min"
    run = Run(trainer.run_dir)
    cell = cell_of_run(run, job.allocator, job.seed, job.fingerprint, job.described, larger_is_better, job.setting)
    write_cell(cell, job.cell)
    if not job.keeps_run:
        shutil.rmtree(job.runs, ignore_errors=True)
    return time.perf_counter() - started


def run_jobs(jobs: Sequence[CellJob], workers: int, on_end: Callable[[CellJob, float], None]) -> None:
    """Run cells; those that end are kept, whatever happens to the others.

    Args:
        jobs: A random allocator's after its reference.
        workers: Processes; with 1 the cells run in this one.
        on_end: Told of every cell that has ended, and its wall seconds.

    Raises:
        ConfigurationError: A cell cannot be run; those under way are stopped.
    """
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            on_end(job, run_job(job))
        return
    waiting = list(jobs)
    pool: Workers[CellJob, float]
    with Workers(run_job, min(workers, len(jobs))) as pool:
        while waiting or pool.num_busy:
            ready = [job for job in waiting if job.reference is None or job.reference.exists()]
            for job in ready[: pool.num_idle]:
                waiting.remove(job)
                pool.start(job)
            ended = pool.wait()
            if ended.error is not None:
                raise ended.error
            if ended.result is None:
                raise ConfigurationError(
                    f"{ended.job}: its process ended early (exit code {ended.exit_code}); the same command goes on "
                    "from its last checkpoint"
                )
            on_end(ended.job, ended.result)


def shared_settings(text: str) -> dict[str, Any]:
    """What all cells share: the resolved recipe without allocator, seeds, and what changes no bit.

    Args:
        text: The resolved recipe.
    """
    content = without_free(parse_yaml(text))
    trainer = content["trainer"]
    trainer.pop("seed", None)
    trainer["callbacks"] = _without_allocators(trainer.get("callbacks"))
    for partitioner in _partitioners(content["data"]):
        partitioner["init_args"]["seed"] = None
    return content


def check_scheme(name: str, text: str) -> None:
    """Refuse to compare allocators where there is nothing to allot.

    Args:
        name: Of the recipe.
        text: The resolved recipe.

    Raises:
        ConfigurationError: The recipe has no scheme.
    """
    if parse_yaml(text)["trainer"].get("scheme") is None:
        raise ConfigurationError(
            f"recipe {name}: trainer.scheme is not set, so every allocator would train the same; give a scheme, such "
            "as --trainer.scheme=w4a8"
        )


def allocator_of(text: str) -> dict[str, Any] | None:
    """The allocator of a resolved recipe, as class_path and init_args; None where it has none."""
    listed = _listed(parse_yaml(text)["trainer"].get("callbacks"))
    return next((each for each in listed if _is_allocator(each)), None)


def cell_recipe(text: str, contestant: Contestant, seed: int, root: Path, reference: Path | None) -> str:
    """The recipe of one cell.

    Args:
        text: The resolved recipe of the comparison.
        contestant: Takes the place of the recipe's allocator, unless it is the recipe's own; that is left out where the
            recipe has no scheme, and so nothing to allot.
        seed: Of the run, and of the partitioners.
        root: Where its run directory is made.
        reference: The cell that a random allocator is matched to.
    """
    content: dict[str, Any] = parse_yaml(text)
    trainer = content["trainer"]
    if contestant.class_path:
        init_args = copy.deepcopy(dict(contestant.init_args))
        if reference is not None:
            init_args["reference"] = str(reference.absolute())
        callbacks = _without_allocators(trainer.get("callbacks"))
        trainer["callbacks"] = [*callbacks, {"class_path": contestant.class_path, "init_args": init_args}]
    elif trainer.get("scheme") is None:
        trainer["callbacks"] = _without_allocators(trainer.get("callbacks"))
    if contestant.lanes:
        lanes = dict(trainer.get("lanes") or {})
        if "qat_kernel" in contestant.lanes and lanes.get("layer_kernels"):
            # Patterns of single layers would win over the kernel that is asked for.
            lanes["layer_kernels"] = {mode: each for mode, each in lanes["layer_kernels"].items() if mode != "qat"}
        trainer["lanes"] = lanes | dict(contestant.lanes)
    trainer |= copy.deepcopy(dict(contestant.trainer))
    # One process a cell: Lightning would start the whole command again for a second one.
    trainer |= {"seed": seed, "devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False}
    trainer["default_root_dir"] = str(root)
    for partitioner in _partitioners(content["data"]):
        partitioner["init_args"]["seed"] = seed
    return str(yaml.safe_dump(content, sort_keys=False))


def _stopped_run(runs: Path) -> Path | None:
    """A run of the cell that can go on; what cannot is cleared away."""
    found = None
    for run_dir in sorted(runs.glob("*/*/")):
        if any((run_dir / "checkpoints").glob("round-*.ckpt")):
            found = run_dir
        else:
            shutil.rmtree(run_dir, ignore_errors=True)
    return found


def _without_allocators(callbacks: Any) -> list[Any]:
    return [each for each in _listed(callbacks) if not _is_allocator(each)]


def _listed(callbacks: Any) -> list[Any]:
    return [] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks]


def _is_allocator(node: Any) -> bool:
    return issubclass(resolve_name(node["class_path"]), Allocator)


def _partitioners(node: Any) -> Iterator[dict[str, Any]]:
    """Every partitioner in the data's part of a recipe that takes a seed."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "partitioner" and isinstance(value, dict) and "seed" in (value.get("init_args") or {}):
            yield value
        else:
            yield from _partitioners(value)
