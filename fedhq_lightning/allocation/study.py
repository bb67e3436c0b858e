"""The Optuna study of one run, kept as plain values so that it goes on bit for bit after a resume."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedhq_lightning.allocation.boundary import Boundary
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.quiet import libraries_quiet

if TYPE_CHECKING:
    from optuna import Study

NAME = "fedhq"
STARTUP_TRIALS = 3
_FIRST_QUESTIONS = 3
"""Asks that the shortest rounds get, which need not be worth trying with every cohort."""
_REACH = 0.3
"""How far from the incumbent's share a trial's may lie."""


@dataclass(frozen=True)
class Trial:
    """One boundary that was tried.

    Attributes:
        number: From 0.
        boundary: What was tried.
        value: Objective: progress per virtual second over that of the first boundary of all, minus 1, added up over
            the boundaries between; None while it is open or where it failed.
        state: Optuna's word.
        origin: `run`, or the earlier run that it was copied from.
    """

    number: int
    boundary: Boundary
    value: float | None
    state: Literal["RUNNING", "COMPLETE", "FAIL"]
    origin: str = "run"

    def to_json(self) -> dict[str, Any]:
        """The trial as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Trial":
        """The trial that `to_json` gave."""
        return cls(**{**data, "boundary": Boundary(**data["boundary"])})


class BoundaryStudy:
    """Proposes boundaries, with Optuna's TPE sampler.

    The first one asked for is the shortest round that is allowed, which makes the largest difference. Optuna's ten
    random trials to start with would use up a run, so there are three. Before every ask the sampler is made anew with a
    seed of (seed, trial number), since its random state would not survive a resume.

    Args:
        seed: The run's.
        slacks: Least and greatest slack that is searched.
        trials: What was tried before, by number.
    """

    def __init__(self, seed: int, slacks: tuple[float, float], trials: Sequence[Trial] = ()) -> None:
        self.trials = list(trials)
        self._seed = seed
        self._slacks = slacks

    def add(self, boundary: Boundary, value: float | None, origin: str = "run") -> Trial:
        """Take up a boundary with its objective; None leaves the trial open."""
        trial = Trial(len(self.trials), boundary, value, "RUNNING" if value is None else "COMPLETE", origin)
        self.trials.append(trial)
        return trial

    def ask(self, incumbent: Boundary, attempt: int = 0) -> Boundary:
        """A boundary to try next; the study does not change.

        Args:
            incumbent: What it challenges.
            attempt: How often it was asked before; another number gives another boundary, but for the first three.
        """
        import optuna
        from optuna.distributions import FloatDistribution

        share = incumbent.share
        space: dict[str, optuna.distributions.BaseDistribution] = {
            "slack": FloatDistribution(*self._slacks),
            "share": FloatDistribution(max(0.0, share - _REACH), min(1.0, share + _REACH)),
        }
        with libraries_quiet("optuna"):
            study = self._study(_seed_of(self._seed, len(self.trials), attempt))
            if len(self.trials) == 1 and attempt < _FIRST_QUESTIONS:
                study.enqueue_trial({"slack": self._slacks[0], "share": share})
            found = study.ask(space).params
        return Boundary(slack=float(found["slack"]), share=float(found["share"]))

    def tell(self, number: int, value: float | None) -> None:
        """Close an open trial; None where its objective is not a number."""
        state: Literal["COMPLETE", "FAIL"] = "FAIL" if value is None else "COMPLETE"
        self.trials[number] = replace(self.trials[number], value=value, state=state)

    def write(self, path: Path) -> None:
        """Write the study whole, as an Optuna journal, which its JournalFileBackend and its dashboard read."""
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        with tempfile.TemporaryDirectory() as folder:
            # Elsewhere, because a killed process would leave a lock beside the file that the next one waits for.
            written = Path(folder) / path.name
            with libraries_quiet("optuna"):
                self._study(0, JournalStorage(JournalFileBackend(str(written))))
            write_atomically(path, written.read_bytes())

    def _study(self, seed: int, storage: Any = None) -> "Study":
        import optuna
        from optuna.distributions import FloatDistribution
        from optuna.trial import TrialState, create_trial

        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        study = optuna.create_study(storage=storage, sampler=sampler, study_name=NAME, direction="maximize")
        # Wide enough for trials of earlier runs, whose fleets may have had another range.
        slacks = [*self._slacks, *(trial.boundary.slack for trial in self.trials)]
        whole = {"slack": FloatDistribution(min(slacks), max(slacks)), "share": FloatDistribution(0.0, 1.0)}
        for trial in self.trials:
            study.add_trial(
                create_trial(
                    state=TrialState[trial.state],
                    params=asdict(trial.boundary),
                    distributions=dict(whole),
                    value=trial.value,
                    user_attrs={"origin": trial.origin},
                )
            )
        return study


def _seed_of(seed: int, number: int, attempt: int) -> int:
    digest = blake2b(f"study/{seed}/{number}/{attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
