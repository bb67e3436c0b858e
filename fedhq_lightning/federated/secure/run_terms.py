"""What a run's secure rounds have in common, and what they take; found before the first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.step_length import fit_length
from fedhq_lightning.federated.exact_mean import MAX_TOTAL_WEIGHT
from fedhq_lightning.federated.secure import messages
from fedhq_lightning.federated.secure.fixed_point import FixedPoint
from fedhq_lightning.federated.secure.secure_aggregation import SecureAggregation
from fedhq_lightning.support.extras import check_installed
from fedhq_lightning.types import ClientId


@dataclass(frozen=True)
class RunTerms:
    """Public, and the same in every round.

    Attributes:
        asked: What the run was asked for.
        grid: What clients' values are put on.
        cohort_size: Clients that a round has.
        threshold: How many of them must be left at the end.
    """

    asked: SecureAggregation
    grid: FixedPoint
    cohort_size: int
    threshold: int

    @classmethod
    def of(
        cls, asked: SecureAggregation, shapes: Mapping[str, tuple[int, ...]], cohort_size: int, sizes: Iterable[int]
    ) -> RunTerms:
        """Found out for a run.

        Args:
            asked: What it was asked for.
            shapes: Of every tensor that clients send, by name.
            cohort_size: Clients that a round has.
            sizes: Examples of every client: no cohort can have more than its largest ones together.

        Raises:
            ConfigurationError: A threshold that cannot be, too many examples, or cryptography is not installed.
        """
        check_installed("trainer.secure_aggregation", "cryptography")
        threshold = asked.threshold_of(cohort_size)
        most = sum(sorted(sizes, reverse=True)[:cohort_size])
        if most > MAX_TOTAL_WEIGHT:
            raise ConfigurationError(
                f"secure_aggregation: a cohort may hold {most} examples, and can have {MAX_TOTAL_WEIGHT} at most; "
                "lower clients_per_round"
            )
        return cls(asked, FixedPoint(shapes, asked.max_value, most, asked.bits), cohort_size, threshold)

    def check_lengths(self, num_steps: int, optimizer_settings: Mapping[str, Any]) -> None:
        """Refuse fits whose length, which clients of FedNova send with their updates, is beyond the grid.

        Args:
            num_steps: Optimizer steps of the longest local fit.
            optimizer_settings: Momentum and the like, which make it longer.

        Raises:
            ConfigurationError: Its client would send nothing in any round.
        """
        length = fit_length(optimizer_settings, num_steps)
        if length > self.asked.max_value:
            raise ConfigurationError(
                f"aggregator FedNova and secure_aggregation.max_value {self.asked.max_value:g}: clients send the "
                f"length of their fit too, and that of {num_steps} steps is {length:.4g} here; set max_value to "
                f"{2 ** math.ceil(math.log2(length))}, or shorten the local fit"
            )

    def of_round(self, run: str, round_number: int, cohort: Sequence[ClientId]) -> messages.RoundTerms:
        """What the parties of one round agree on.

        Raises:
            ProtocolError: The cohort is smaller than the threshold, because few clients were available.
        """
        terms = run, round_number, tuple(cohort), self.threshold, self.grid.num_values, self.asked.bits
        return messages.RoundTerms(*terms)

    @property
    def uplink_bytes(self) -> int:
        """What each client sends in a round in which nobody drops out."""
        return messages.uplink_bytes(self.cohort_size, self.grid.num_values, self.asked.bits)

    @property
    def downlink_bytes(self) -> int:
        """What each receives in it beside the model."""
        return messages.downlink_bytes(self.cohort_size)


def check_sum_is_all(allocator: Allocator, retakes_statistics: bool) -> None:
    """Refuse what needs more of a client's data than the masked sum.

    Args:
        allocator: Set up.
        retakes_statistics: Whether clients send batch statistics by themselves.

    Raises:
        ConfigurationError: The allocator compares updates, or batch statistics would travel unmasked.
    """
    if allocator.wants_update_divergence:
        raise ConfigurationError(
            f"secure_aggregation and the divergence of {type(allocator).__name__} cannot be together: it compares the "
            "directions of updates, which nobody sees; set divergence to a distance of labels, such as "
            "total_variation, or to null"
        )
    if retakes_statistics:
        raise ConfigurationError(
            "secure_aggregation and retake_batch_statistics cannot be together: each client would send its batch "
            "statistics unmasked; set retake_batch_statistics to false, and running ones are averaged within the sum"
        )
