"""Run cells, one after another here or several at once in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhq_lightning.comparing.cells import cell_of_run, write_cell
from fedhq_lightning.comparing.lineup import Contestant
from fedhq_lightning.comparing.settings import cell_recipe
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quiet import say_line, show_own_warnings
from fedhq_lightning.recipe_parsing import resolve
from fedhq_lightning.tracking import labelled


@dataclass(frozen=True)
class Job:
    """A cell that is still to be run.

    Attributes:
        allocator: Name of the allocator.
        seed: Of the run.
        recipe_name: Name of the recipe.
        text: The resolved recipe of the comparison.
        contestant: The allocator.
        described: What it is made with, and matched to.
        fingerprint: Of everything that decides the run.
        cell: Where the cell is to be kept.
        runs: Where the run directory is made; the cell's alone.
        reference: A cell that must be there before; or None.
        group: Group of its run at a tracker.
        keeps_run: Whether the run directory stays once the cell is kept.
    """

    allocator: str
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


def run_job(job: Job) -> float:
    """Run one cell, or go on with a run of it that was stopped, and keep it.

    Returns:
        Wall seconds that it took now.

    Raises:
        ConfigurationError: The recipe or the allocator does not work.
    """
    started = time.perf_counter()
    labels = labelled(job.group, job.allocator, f"{job.allocator}, seed {job.seed}")
    try:
        text = cell_recipe(job.text, job.contestant, job.seed, job.runs, job.reference)
        resolved = resolve(job.recipe_name, text)
        with resolved.keys_named(), labels:
            trainer, module, data = resolved.instantiate()
            trainer.writes_model = job.keeps_run or bool(trainer.logger)
            trainer.fit(module, data, _stopped_run(job.runs))
    except ConfigurationError as error:
        raise ConfigurationError(f"{job.allocator}, seed {job.seed}: {error}") from error
    larger_is_better = trainer.monitor_mode != "min"
    cell = cell_of_run(
        trainer.run_dir, trainer.summary, job.allocator, job.seed, job.fingerprint, job.described, larger_is_better
    )
    write_cell(cell, job.cell)
    if not job.keeps_run:
        shutil.rmtree(job.runs, ignore_errors=True)
    return time.perf_counter() - started


def run_jobs(jobs: Sequence[Job], workers: int, on_end: Callable[[Job, float], None]) -> None:
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
    running: dict[Future[float], Job] = {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _prepare_worker, (os.getpid(),))
    try:
        while waiting or running:
            ready = [job for job in waiting if job.reference is None or job.reference.exists()]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                running[pool.submit(run_job, job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                on_end(running.pop(future), future.result())
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _stopped_run(runs: Path) -> Path | None:
    """A run of the cell that can go on; what cannot is cleared away."""
    found = None
    for run_dir in sorted(runs.glob("*/*/")):
        if any((run_dir / "checkpoints").glob("round-*.ckpt")):
            found = run_dir
        else:
            shutil.rmtree(run_dir, ignore_errors=True)
    return found


def _prepare_worker(parent: int) -> None:
    """Leave Ctrl-C to the first process, which ends this one; end with it; say nothing that a library says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # In order, so that loggers are closed and nothing of the system is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    show_own_warnings(lambda line: say_line(f"fedhq: {line}", sys.stderr))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
