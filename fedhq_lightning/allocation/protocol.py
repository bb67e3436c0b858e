"""What the trainer asks of an allocator, and what it tells it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedhq_lightning.devices import Fleet
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import ClientId, Mode, MonitorMode, Plan

if TYPE_CHECKING:
    from fedhq_lightning.allocation.briefing import Briefing
    from fedhq_lightning.devices import FleetSpec
    from fedhq_lightning.devices.virtual_clock import VirtualClock
    from fedhq_lightning.risk.divergence import DivergenceMeasure
    from fedhq_lightning.risk.sensitivity import SensitivityMeasure
    from fedhq_lightning.run.records import RoundRecord


@dataclass(frozen=True)
class AllocationContext:
    """What an allocator may know before round 1. Large fleets hand over functions, never lists of answers.

    Attributes:
        client_ids: Every client that has data; a range where ids are numbers.
        seed: The run's.
        client_seconds: Virtual seconds of a client's round under a mode, as the hardware analysis predicts them.
        divergence: A client's label distance to the global mix by a measure, 0 to 1; None where the data tell no label
            counts, or nobody sent them (see `Allocator.wants_label_divergence`). A client without labels raises
            ConfigurationError.
        sensitivity: How much the scheme hurts the initial model on the client's calibration batch, by a measure (None
            where that is no number); None without a scheme.
        link_seconds: Virtual seconds of a client's download and upload, which every mode has alike.
        calibration_seconds: Virtual seconds of what a client computes beside its steps in a mode.
        analysis_seconds: Virtual seconds of what a client measures for `wanted_sensitivity`.
        fits: Whether a client's device can hold the training in a mode.
        trains: Whether a client has a batch to train on; one without is idle in whatever mode, and counts nothing.
        num_steps: Optimizer steps of a client's local fit.
        tier: Name of a client's device.
        seconds_on: `client_seconds` for another fleet than the clock's: what an operator states about the devices,
            where that differs from what they do.
        cohort: The clients of a round, from 1; None where that depends on more than the seed.
        max_rounds: Rounds of the run.
        eval_every_n_rounds: Rounds from one logged metric to the next.
        round_deadline: Virtual seconds after which a round ends, or None.
        rounds_wait: Whether a round waits for the slowest of its cohort. Else a cohort begins in the places that became
            free, and the round ends with the first updates that come: each client costs its own time.
        rounds_to_arrive: Rounds, this one included, within which updates that begin in a round come, in the mean: 1
            where rounds wait.
        monitor_mode: Whether a larger or a smaller monitored value is better.
        resumes: Whether `load_state_dict` follows.
    """

    client_ids: Sequence[ClientId]
    seed: int
    client_seconds: Callable[[ClientId, Mode], float]
    divergence: "Callable[[ClientId, DivergenceMeasure], float] | None" = None
    sensitivity: "Callable[[ClientId, SensitivityMeasure], float | None] | None" = None
    link_seconds: Callable[[ClientId], float] = lambda client_id: 0.0
    calibration_seconds: Callable[[ClientId, Mode], float] = lambda client_id, mode: 0.0
    analysis_seconds: Callable[[ClientId], float] = lambda client_id: 0.0
    fits: Callable[[ClientId, Mode], bool] = lambda client_id, mode: True
    trains: Callable[[ClientId], bool] = lambda client_id: True
    num_steps: Callable[[ClientId], int] = lambda client_id: 1
    tier: Callable[[ClientId], str] = lambda client_id: "device"
    seconds_on: "Callable[[FleetSpec], Callable[[ClientId, Mode], float]] | None" = None
    cohort: Callable[[int], Sequence[ClientId]] | None = None
    max_rounds: int = 1
    eval_every_n_rounds: int = 1
    round_deadline: float | None = None
    rounds_wait: bool = True
    rounds_to_arrive: int = 1
    monitor_mode: MonitorMode = "max"
    resumes: bool = False

    @classmethod
    def on_clock(
        cls,
        clock: "VirtualClock",
        client_ids: Sequence[ClientId],
        seed: int,
        *,
        divergence: "Callable[[ClientId, DivergenceMeasure], float] | None",
        sensitivity: "Callable[[ClientId, SensitivityMeasure], float | None] | None",
        cohort: Callable[[int], Sequence[ClientId]] | None,
        max_rounds: int,
        eval_every_n_rounds: int,
        monitor_mode: MonitorMode,
        resumes: bool,
        round_deadline: float | None = None,
        rounds_wait: bool = True,
        rounds_to_arrive: int = 1,
    ) -> Self:
        """What the run's clock tells, beside what is given; see the attributes.

        Args:
            clock: Of all clients, those without data included.
            client_ids: Those with data.
            seed: The run's.
            divergence: Or None where the data tell no label counts.
            sensitivity: Or None without a scheme.
            cohort: Or None where that depends on more than the seed.
            max_rounds: Of the run.
            eval_every_n_rounds: Of the run.
            monitor_mode: Of the run.
            resumes: Whether a checkpoint's state follows.
            round_deadline: Of the run.
            rounds_wait: Of the run.
            rounds_to_arrive: Of the run.
        """
        return cls(
            client_ids,
            seed,
            clock.seconds,
            link_seconds=clock.link_seconds,
            calibration_seconds=clock.calibration_seconds,
            analysis_seconds=clock.analysis_seconds,
            fits=clock.fits,
            trains=clock.trains,
            num_steps=clock.num_steps,
            tier=clock.tier,
            seconds_on=lambda spec: clock.on(Fleet.resolve(spec, seed)).seconds,
            divergence=divergence,
            sensitivity=sensitivity,
            cohort=cohort,
            max_rounds=max_rounds,
            eval_every_n_rounds=eval_every_n_rounds,
            round_deadline=round_deadline,
            rounds_wait=rounds_wait,
            rounds_to_arrive=rounds_to_arrive,
            monitor_mode=monitor_mode,
            resumes=resumes,
        )


class Allocator(ABC):
    """Proposes a mode for every client of a cohort.

    The trainer calls `begin` once, then `propose` before and `observe` after each round. Plans must depend on nothing
    but the context, the rounds observed and the state, so that a resumed run proposes what an unbroken one would.

    Attributes:
        wanted_sensitivity: What every client of a cohort shall measure on the model it received, before it trains, for
            `ClientRecord.sensitivity`; None for nothing. Read after `begin`.
        wants_label_divergence: Whether `begin` looks at `AllocationContext.divergence`. Silos of `lightning.Trainer`
            count and send their labels only then; others need not set it. Read before `begin`.
        wants_update_divergence: Whether `ClientRecord.update_divergence` shall be found. Read after `begin`.
        plans_each_client_alone: Whether a client's mode follows from its id and the seed alone, neither from other
            clients nor from what it tells of its data. Private runs take no other allocators. Read after `begin`.
        looks_at_the_slowest: Whether plans rest on a round lasting as long as its slowest client. Such an allocator is
            refused where no round waits (`AllocationContext.rounds_wait`).
        looks_at_max_rounds: Whether plans depend on `AllocationContext.max_rounds`. Where they do, who makes a run
            longer is told that it is not the run that it would have been with more rounds from the start.
    """

    wanted_sensitivity: "SensitivityMeasure | None" = None
    wants_label_divergence: bool = False
    wants_update_divergence: bool = False
    plans_each_client_alone: bool = False
    looks_at_the_slowest: bool = False
    looks_at_max_rounds: bool = True

    @property
    def briefing(self) -> "Briefing | None":
        """What the terminal shows before round 1, where there is something to show. Read after `begin`."""
        return None

    def begin(self, context: AllocationContext) -> None:
        """Take in the run, before round 1 and again when a run resumes.

        Args:
            context: The run's clients and what is known of them.

        Raises:
            ConfigurationError: The allocator cannot work on this run.
        """

    @abstractmethod
    def propose(self, round_number: int, cohort: Sequence[ClientId]) -> Plan:
        """Plan one round.

        Args:
            round_number: From 1.
            cohort: The clients sampled, each once.

        Returns:
            A mode for every client of the cohort, and for nobody else.

        Raises:
            RuntimeError: Called before `begin`.
        """

    def observe(self, result: "RoundRecord") -> None:
        """Learn from a finished round. Nothing to learn by default.

        Args:
            result: What the run logged of it. Of round 0, the evaluation before round 1, there are no clients; silos of
                `lightning.Trainer` have no such round.
        """

    def write(self, folder: Path) -> None:
        """Leave files in the run directory; called on the first process after every round. Nothing by default.

        Args:
            folder: The run directory.
        """

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which `load_state_dict` goes on; empty where `begin` settles everything."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, after `begin`.

        Args:
            state: What `state_dict` returned.

        Raises:
            ConfigurationError: It is another allocator's.
        """
        if state:
            raise ConfigurationError(
                f"{type(self).__name__} keeps no state, but the checkpoint holds {', '.join(sorted(state))}; "
                "resume with the allocator that the run began with"
            )
