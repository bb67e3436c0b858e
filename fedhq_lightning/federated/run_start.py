"""Where a run starts: in a new directory, where an earlier one stood, or anew where one stopped before round 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.federated.resume import Resumed, begin_anew, check_same_from_start, find_run, read_same
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.federated.setup import Job
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.run.description import Recipe
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.first_process import is_first_process


@dataclass(frozen=True)
class RunStart:
    """What is found before set-up.

    Attributes:
        settings: Of the run.
        recipe: Its name and text.
        earlier: Directory of the run that goes on; None for a new one.
        resumed: Where that run stood; None where it stopped before its first checkpoint, and for a new one.
        until_the_end: Closed when the run ends; it holds the directory's lock.
    """

    settings: RunSettings
    recipe: Recipe
    earlier: RunDirectory | None
    resumed: Resumed | None
    until_the_end: ExitStack

    @classmethod
    def find(
        cls,
        settings: RunSettings,
        recipe: Recipe,
        described: Mapping[str, Any],
        module: L.LightningModule,
        ckpt_path: str | Path | None,
        root: Path,
        until_the_end: ExitStack,
    ) -> RunStart:
        """What `ckpt_path` means, locked, and the same run as this.

        Args:
            settings: Of this run.
            recipe: Of this run.
            described: What decides the bits of this run.
            module: The user's.
            ckpt_path: As `FederatedTrainer.fit` takes it.
            root: Folder of all runs.
            until_the_end: Closed when the run ends.

        Raises:
            ConfigurationError: Nothing to go on from, another run, or one that goes on in another process.
        """
        place = None if ckpt_path is None else find_run(ckpt_path, root / recipe.name)
        if place is None:
            return cls(settings, recipe, None, None, until_the_end)
        directory, file = RunDirectory.of_checkpoint(place)
        if is_first_process():
            until_the_end.enter_context(directory.locked())
        if file is None:
            check_same_from_start(directory, recipe.text)
            return cls(settings, recipe, directory, None, until_the_end)
        resumed = read_same(directory, file, described, settings, module)
        return cls(settings, recipe, directory, resumed, until_the_end)

    def open(self, job: Job, root: Path, name: str | None) -> RunDirectory:
        """The run's directory: a new one is made, and locked, by the first process; the others get its root.

        Args:
            job: Checked inputs, compared with the checkpoint's.
            root: Folder of all runs.
            name: Of a new run.

        Raises:
            ConfigurationError: A checkpoint of another module or other data, or a folder that cannot be made.
        """
        if self.resumed is not None:
            self.resumed.check_job(job.initial_state(), job.datamodule.model_inputs())
        if self.earlier is not None:
            return self.earlier
        if not is_first_process():
            return RunDirectory(root)
        directory = RunDirectory.create(root, self.recipe.name, name)
        self.until_the_end.callback(directory.remove_if_without_rounds)
        write_atomically(directory.recipe, self.recipe.text)
        self.until_the_end.enter_context(directory.locked())
        return directory

    def state(
        self, job: Job, evaluator: Evaluator, callbacks: Sequence[RoundCallback], processes: Processes
    ) -> RunState:
        """Where the run stands, with every part as it was there, and the files as they were.

        Args:
            job: With the allocator.
            evaluator: Of the run.
            callbacks: The user's.
            processes: All, each of which calls this.

        Raises:
            ConfigurationError: A part cannot take up what the checkpoint holds of it.
        """
        settings, resumed, is_first = self.settings, self.resumed, processes.rank == 0
        if resumed is None:
            # What was measured or read at set-up need not be the same to the last bit on every process.
            job.allocator.load_state_dict(processes.broadcast(job.allocator.state_dict()))
            settings.aggregator.load_state_dict({})
            if self.earlier is not None and is_first:
                self.until_the_end.enter_context(begin_anew(self.earlier, self.recipe.text, settings.max_rounds))
            return RunState(job.initial_state())
        saved = resumed.saved
        resumed.load_into(settings.aggregator, saved["aggregator"])
        resumed.load_into(job.allocator, saved["allocator"])
        resumed.load_into(evaluator, saved["evaluator"])
        for each in callbacks:
            resumed.load_into(each, saved["callbacks"].get(each.state_key))
        processes.barrier()  # all have read the rounds
        if is_first:
            self.until_the_end.enter_context(resumed.take_up(job.template, self.recipe.text, settings.max_rounds))
        return resumed.state
