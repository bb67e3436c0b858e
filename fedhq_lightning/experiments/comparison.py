"""A comparison: which cells it has, which are kept already, and running the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments import contestants
from fedhq_lightning.experiments.cell_runs import (
    CellJob,
    allocator_of,
    cell_recipe,
    check_scheme,
    run_jobs,
    shared_settings,
)
from fedhq_lightning.experiments.cells import Cell, cell_path, keep_settings, name_of, read_cell
from fedhq_lightning.experiments.contestants import BEST_FIXED, THE_RECIPES_OWN, Contestant
from fedhq_lightning.experiments.statistics import value_at
from fedhq_lightning.experiments.variations import Variation
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe.identity import fingerprint, without_free
from fedhq_lightning.support.locks import locked
from fedhq_lightning.support.yaml_text import parse_yaml

OnEnd = Callable[[CellJob, float, int, int], None]
"""Told of a cell that has ended, its wall seconds, how many have ended, and of how many."""


@dataclass(frozen=True)
class Comparison:
    """Allocators, or other values of a recipe, or both, paired by seed.

    Cells of one seed share initial weights, partition, devices, cohorts and everything else of the recipe that is not
    compared.

    Attributes:
        recipe_name: Name of the recipe.
        text: The resolved recipe; its allocator and its seeds are replaced.
        allocators: As `fedhq compare --allocators` takes them; none for the recipe's own, where keys are varied.
        seeds: One run of each allocator a seed.
        folder: Where cells are kept, in `cells/`; made if it is not there.
        reference: Name of the allocator to which random ones are matched; None for `hybrid`, else `coarse`.
        grid_seeds: Seeds by which `best-fixed` is chosen; None for two that follow the largest of `seeds`.
        runs: Where runs are made; None for `folder/runs`.
        keeps_runs: Whether run directories stay once their cells are kept.
        varied: The recipe at each point of the varied keys, every allocator on each; none where no key is varied.
    """

    recipe_name: str
    text: str
    allocators: Sequence[str]
    seeds: Sequence[int]
    folder: Path
    reference: str | None = None
    grid_seeds: Sequence[int] | None = None
    runs: Path | None = None
    keeps_runs: bool = True
    varied: Sequence[Variation] = ()


@dataclass(frozen=True)
class Kept:
    """The cells of a comparison that are there.

    Attributes:
        cells: In the order of allocators, then of seeds; those of `best-fixed` under that name.
        missing: Names of cells that are not there yet.
        best_fixed: The boundary that `best-fixed` stands for, once it is known.
    """

    cells: Sequence[Cell]
    missing: Sequence[str]
    best_fixed: str | None = None


class Compared:
    """A comparison, checked.

    Args:
        comparison: What is compared.

    Raises:
        ConfigurationError: Unknown allocators, no seeds, a recipe that does not work or has no scheme, the folder of
            another comparison, or a cell in it that was run with other settings.
    """

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._variations = list(comparison.varied) or [Variation(comparison.text)]
        _check_seeds("seeds", comparison.seeds)
        self._seeds = list(comparison.seeds)
        self._contestants, self._order = self._checked_contestants()
        self._reference = contestants.reference_of(self._contestants, comparison.reference)
        self._has_best_fixed = BEST_FIXED in self._order
        self._grid_seeds = self._checked_grid_seeds()
        self._check_instantiable()
        self._check_different()
        self._settings = keep_settings(comparison.folder, comparison.recipe_name, shared_settings(comparison.text))
        self._cells = comparison.folder / "cells"
        self._cells.mkdir(exist_ok=True)
        for job in self._all_jobs():
            if job.cell.exists():
                self._read(job)

    @property
    def names(self) -> list[str]:
        """What is compared, in its order."""
        return [name_of(allocator, each.name) for allocator in self._order for each in self._variations]

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from running cells of the same folder; refused where one does."""
        folder = self._comparison.folder
        refusal = f"{folder}: another process is running this comparison; let it end, or stop it, first"
        return locked(folder / ".lock", refusal)

    def run(self, workers: int = 1, limit: int | None = None, on_end: OnEnd = lambda *_: None) -> None:
        """Run the cells that are not there yet.

        Args:
            workers: Processes at once.
            limit: At most so many cells now; None for all.
            on_end: Told of every cell that has ended.

        Raises:
            ConfigurationError: A cell cannot be run.
        """
        with self.locked():
            done = 0

            def run_missing(jobs: Sequence[CellJob], more: int) -> None:
                nonlocal done
                missing = [job for job in jobs if not job.cell.exists()]
                missing = missing[: None if limit is None else max(0, limit - done)]
                total = done + len(missing) + more

                def ended(job: CellJob, seconds: float) -> None:
                    nonlocal done
                    done += 1
                    on_end(job, seconds, done, total if limit is None else min(total, limit))

                run_jobs(missing, workers, ended)

            run_missing(self._all_jobs(), len(self._seeds) if self._has_best_fixed else 0)
            if self._has_best_fixed and self.best_fixed() is not None:
                run_missing(self._best_fixed_jobs(), 0)

    def kept(self) -> Kept:
        """The cells that are there."""
        found: dict[tuple[str, int], Cell] = {}
        missing = []
        best = self.best_fixed() if self._has_best_fixed else None
        jobs = [job for job in self._all_jobs() if job.seed in self._seeds and job.name in self.names]
        for job in jobs:
            if job.cell.exists():
                found[job.name, job.seed] = self._read(job)
            else:
                missing.append(str(job))
        for seed in self._seeds if self._has_best_fixed else ():
            path = cell_path(self._cells, best.name, seed) if best else None
            if path is not None and path.exists():
                found[BEST_FIXED, seed] = replace(read_cell(path), allocator=BEST_FIXED)
            else:
                missing.append(f"{BEST_FIXED}, seed {seed}")
        order = [found[name, seed] for name in self.names for seed in self._seeds if (name, seed) in found]
        return Kept(order, missing, best.name if best else None)

    def missing_runs(self) -> dict[str, Path]:
        """Where the run of each cell that is not kept yet is made, by the cell's name."""
        return {str(job): job.runs for job in self._all_jobs() if not job.cell.exists()}

    def best_model(self) -> tuple[Cell, Path] | None:
        """The cell whose deployed model validation liked best, and that model's folder; None where none was kept."""
        found: list[tuple[float, Cell, Path]] = []
        for job in self._all_jobs():
            folders = sorted(job.runs.glob("*/*/model"))
            if not folders or not job.cell.exists():
                continue
            cell = self._read(job)
            value = cell.summary.get("metric_quantized")
            if value is not None:
                found.append((value if cell.larger_is_better else -value, cell, folders[-1]))
        return max(found, key=lambda each: each[0])[1:] if found else None

    def best_fixed(self) -> Contestant | None:
        """The boundary of the grid with the best quantized metric at equal virtual time, on the grid's seeds.

        Equal is the shortest total virtual time among the grid's runs of a seed; of equals the smaller slack and share
        wins. None while cells of the grid are missing.
        """
        scores: dict[str, list[float]] = {}
        for seed in self._grid_seeds:
            cells = []
            for each in contestants.grid():
                path = cell_path(self._cells, each.name, seed)
                if not path.exists():
                    return None
                cells.append(read_cell(path))
            at = min(float(cell.summary["virtual_seconds"]) for cell in cells)
            for cell in cells:
                sign = 1 if cell.larger_is_better else -1
                scores.setdefault(cell.allocator, []).append(sign * value_at(*cell.curve("virtual"), at))
        return max(contestants.grid(), key=lambda each: fmean(scores[each.name]))

    def _checked_grid_seeds(self) -> list[int]:
        given = self._comparison.grid_seeds
        if not self._has_best_fixed:
            if given is not None:
                raise ConfigurationError(f"grid seeds are for {BEST_FIXED}, which is not among the allocators; add it")
            return []
        if given is None:
            return [max(self._seeds) + 1, max(self._seeds) + 2]
        _check_seeds("grid seeds", given)
        if both := sorted(set(given) & set(self._seeds)):
            raise ConfigurationError(
                f"grid seeds {both}: {BEST_FIXED} is chosen on other seeds than it is compared on; give others"
            )
        return list(given)

    def _checked_contestants(self) -> tuple[list[Contestant], list[str]]:
        """Who is compared, `best-fixed` left out; and the names of all in their order."""
        given, varied = list(self._comparison.allocators), self._comparison.varied
        if varied and not given:
            return [THE_RECIPES_OWN], [THE_RECIPES_OWN.name]
        contestants.check_names(given)
        if varied and BEST_FIXED in given:
            raise ConfigurationError(
                f"{BEST_FIXED} is chosen for one recipe, and several are compared; leave it out, or vary nothing else"
            )
        found = {name: contestants.contestant(name) for name in given if name != BEST_FIXED}
        order = [BEST_FIXED if name == BEST_FIXED else found[name].name for name in given]
        contestants.check_names(order)
        for each in self._variations:
            check_scheme(self._comparison.recipe_name, each.text)
        return list(found.values()), order

    def _check_instantiable(self) -> None:
        """Find before the first run what is wrong with an allocator's or a varied key's class and arguments.

        What has run already is left out.
        """
        cells, seeds = self._comparison.folder / "cells", [*self._seeds, *self._grid_seeds]
        asked = [(each, variation) for variation in self._variations for each in self._contestants]
        if self._has_best_fixed:
            asked.append((contestants.grid()[0], self._variations[0]))
        for each, variation in asked:
            if any(cell_path(cells, each.name, seed, variation.name).exists() for seed in seeds):
                continue
            name = name_of(each.name, variation.name)
            subject = name if variation.name else f"allocator {name!r}"
            try:
                resolved = resolve(self._comparison.recipe_name, self._recipe(each, variation))
                with resolved.keys_named():
                    trainer, _, _ = resolved.instantiate()
            except ConfigurationError as error:
                raise ConfigurationError(f"{subject}: {error}") from error
            if each.class_path and trainer.allocator is None:
                raise ConfigurationError(f"{subject}: {each.class_path} is no Allocator")

    def _check_different(self) -> None:
        """Refuse a varied key that makes no difference, as one that the seeds or the allocators set."""
        for each in self._contestants:
            seen: dict[str, str] = {}
            for variation in self._variations:
                same = fingerprint(without_free(parse_yaml(self._recipe(each, variation))))
                name = name_of(each.name, variation.name)
                if same in seen:
                    raise ConfigurationError(
                        f"{seen[same]} and {name} are the same run: what differs is set by --seeds or --allocators; "
                        "vary another key"
                    )
                seen[same] = name

    def _recipe(self, contestant: Contestant, variation: Variation) -> str:
        """Of its cell with the first seed, to look at and not to run."""
        folder = self._comparison.folder
        return cell_recipe(variation.text, contestant, self._seeds[0], folder, folder if contestant.matched else None)

    def _all_jobs(self) -> list[CellJob]:
        """By seed, so that what is there early can be compared; random allocators after the one they are matched to."""
        jobs = []
        ordered = sorted(self._contestants, key=lambda each: each.matched is not None)
        for seed in self._seeds:
            for variation in self._variations:
                reference = self._job(self._reference, seed, variation) if self._reference else None
                jobs += [self._job(each, seed, variation, reference if each.matched else None) for each in ordered]
        jobs += [self._job(each, seed, self._variations[0]) for seed in self._grid_seeds for each in contestants.grid()]
        return list({job.cell: job for job in jobs}.values())

    def _best_fixed_jobs(self) -> list[CellJob]:
        best = self.best_fixed()
        return [] if best is None else [self._job(best, seed, self._variations[0]) for seed in self._seeds]

    def _job(
        self, contestant: Contestant, seed: int, variation: Variation, reference: CellJob | None = None
    ) -> CellJob:
        comparison = self._comparison
        cell = cell_path(self._cells, contestant.name, seed, variation.name)
        runs = (comparison.runs or comparison.folder / "runs") / cell.stem
        matched_to = reference.cell if reference else None
        decided: dict[str, Any] = (
            contestant.described() if contestant.class_path else allocator_of(variation.text) or {}
        )
        if variation.values:
            decided = {**decided, "varied": dict(variation.values)}
        described = {**decided, "matched_to": reference.name} if reference else decided
        return CellJob(
            contestant.name,
            variation.name,
            seed,
            comparison.recipe_name,
            variation.text,
            contestant,
            described,
            fingerprint([self._settings, decided, seed, reference.fingerprint if reference else None]),
            cell,
            runs,
            matched_to,
            f"compare-{comparison.folder.absolute().name}",
            comparison.keeps_runs,
        )

    def _read(self, job: CellJob) -> Cell:
        cell = read_cell(job.cell)
        if cell.fingerprint != job.fingerprint:
            raise ConfigurationError(
                f"{job.cell} was run with other settings: it was made with {dict(cell.described)}, now with "
                f"{job.described}; name another --folder, or remove the file to run the cell again"
            )
        return cell


def _check_seeds(name: str, seeds: Sequence[int]) -> None:
    if not seeds:
        raise ConfigurationError(f"{name}: none given; give at least one, such as --seeds 0 1 2")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigurationError(f"{name} {list(seeds)}: each once, and none below 0")
