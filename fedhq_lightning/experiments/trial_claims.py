"""Who runs which trial: one lock for asking, and one a worker that falls with it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhq_lightning.experiments.study_storage import told
from fedhq_lightning.support.locks import is_locked, locked

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

_WORKER, _STARTS = "worker", "starts"
_MOST_STARTS = 3


class Claims:
    """Hands out the trials of a study to one worker, among others on the same folder.

    A trial whose worker has ended without an answer (killed, or stopped by Ctrl-C) is handed out again under its
    number, with its parameters. Whether a worker still lives is told by a lock on a file in the folder, which the
    system lets go of with the process. Workers on another machine that do not share the folder are not judged.

    Args:
        study: The study.
        storage: Its storage, for messages.
        folder: The tune folder.
        num_trials: Trials in all.
        make_sampler: Optuna's sampler for the trial of a number.
    """

    def __init__(
        self, study: Study, storage: str, folder: Path, num_trials: int, make_sampler: Callable[[int], Any]
    ) -> None:
        self._study = study
        self._storage = storage
        self._folder = folder / ".workers"
        self._num_trials = num_trials
        self._make_sampler = make_sampler
        self.worker = f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(3)}"

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Count as a living worker for the length of the block."""
        own = self._folder / self.worker
        with locked(own):
            try:
                yield
            finally:
                own.unlink(missing_ok=True)

    def alone(self) -> AbstractContextManager[None]:
        """Keep the other workers from asking, and from writing the study's files, for the length of the block."""
        return locked(self._folder / "lock")

    def next(self, space: dict[str, BaseDistribution]) -> Trial | None:
        """A trial to run: one that was left, else a new one; None when there are enough.

        Before a new one the sampler is made anew, so that its random numbers depend on the trial's number alone.

        Raises:
            ConfigurationError: The storage fails.
        """
        import optuna
        from optuna.trial import TrialState

        with self.alone(), told(self._storage):
            trials = self._study.get_trials(deepcopy=False)
            for left in trials:
                if left.state != TrialState.RUNNING or self._is_held(left):
                    continue
                starts = left.user_attrs.get(_STARTS, 1)
                trial = optuna.trial.Trial(self._study, left._trial_id)
                if starts >= _MOST_STARTS:
                    trial.set_user_attr("reason", f"its worker was killed {starts} times while it ran")
                    self._study.tell(trial, state=TrialState.FAIL)
                    continue
                return self._claimed(trial, left.number, space, starts + 1)
            waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
            if len(trials) - len(waiting) >= self._num_trials:
                return None
            number = min(waiting, default=len(trials))
            self._study.sampler = self._make_sampler(number)
            trial = self._study.ask()
            return self._claimed(trial, number, space, 1)

    def was_interrupted(self, trial: Trial) -> None:
        """Not count a start that the user has stopped."""
        with told(self._storage):
            trial.set_user_attr(_STARTS, trial.user_attrs.get(_STARTS, 1) - 1)

    def _claimed(self, trial: Trial, number: int, space: dict[str, BaseDistribution], starts: int) -> Trial:
        trial.set_user_attr(_WORKER, self.worker)
        trial.set_user_attr(_STARTS, starts)
        # Its worker may have been killed between asking and suggesting.
        self._study.sampler = self._make_sampler(number)
        for key, distribution in space.items():
            trial._suggest(key, distribution)
        return trial

    def _is_held(self, trial: FrozenTrial) -> bool:
        worker = str(trial.user_attrs.get(_WORKER, ""))
        path = self._folder / worker
        if not worker:
            return False  # asked for, and killed before it was claimed: asking is done alone
        if not path.exists():
            return not worker.startswith(f"{os.uname().nodename}-") and not _is_here(path.parent, trial)
        if is_locked(path):
            return True
        path.unlink(missing_ok=True)
        return False


def _is_here(folder: Path, trial: FrozenTrial) -> bool:
    """Whether the trial's run is in this folder: then its worker's lock was here too."""
    run_dir = trial.user_attrs.get("run_dir")
    return run_dir is not None and folder.parent in Path(run_dir).parents
