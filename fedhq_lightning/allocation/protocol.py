"""What the trainer asks of an allocator, and what it tells it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import ClientId, Mode, Plan

if TYPE_CHECKING:
    from fedhq_lightning.federated.records import RoundRecord


@dataclass(frozen=True)
class AllocationContext:
    """What an allocator may know before round 1. Large fleets hand over functions, never lists of answers.

    Attributes:
        client_ids: Every client that has data; a range where ids are numbers.
        seed: The run's.
        client_seconds: Virtual seconds of a client's round under a mode.
        divergence: A client's label distance to the global mix, 0 to 1; None where the data tell no label counts.
    """

    client_ids: Sequence[ClientId]
    seed: int
    client_seconds: Callable[[ClientId, Mode], float]
    divergence: Callable[[ClientId], float] | None = None


class Allocator(ABC):
    """Proposes a mode for every client of a cohort.

    The trainer calls `setup` once, then `propose` before and `observe` after each round. Plans must depend on nothing
    but the context, the rounds observed and the state, so that a resumed run proposes what an unbroken one would.
    """

    def setup(self, context: AllocationContext) -> None:
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
            RuntimeError: Called before `setup`.
        """

    def observe(self, result: "RoundRecord") -> None:
        """Learn from a finished round. Nothing to learn by default.

        Args:
            result: What the run logged of it.
        """

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which `load_state_dict` goes on; empty where `setup` settles everything."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, after `setup`.

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
