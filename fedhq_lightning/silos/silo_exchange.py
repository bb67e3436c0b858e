"""The exchange at the end of a round: payloads go to all silos, sealed where keys are given, and all aggregate."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.federated.server import Aggregated
from fedhq_lightning.federated.update_directions import sketcher_of
from fedhq_lightning.silos.silo_context import SiloFacts
from fedhq_lightning.silos.silo_rounds import Limits, SiloRound, Work
from fedhq_lightning.silos.silo_seals import SiloSeals
from fedhq_lightning.silos.silo_settings import SiloSettings
from fedhq_lightning.support.collectives import Processes


class SiloExchange:
    """What this silo sends and takes, round by round.

    Args:
        settings: What was asked for.
        processes: The silos.
        seed: Of the run.
        usual_norms: Of the last round's updates, from a checkpoint; None at the start.

    Raises:
        ConfigurationError: Payloads shall be sealed, and a key is missing or of another kind.

    Attributes:
        usual_norms: As given, then those of the last round.
    """

    def __init__(
        self, settings: SiloSettings, processes: Processes, seed: int, usual_norms: list[float] | None
    ) -> None:
        self._settings = settings
        self._processes = processes
        self._seals = None if settings.keys is None else SiloSeals(settings.keys, processes)
        self._limits: Limits | None = None
        self._sketcher = sketcher_of(seed)
        self.usual_norms = usual_norms

    def begin(self, facts: Sequence[SiloFacts]) -> None:
        """Take what the silos told of themselves, by rank."""
        settings = self._settings
        examples = [each.num_examples for each in facts]
        self._limits = Limits.of(settings.max_norm_ratio, examples, settings.every_n_epochs)

    def run(
        self, this_round: SiloRound, pl_module: pl.LightningModule, work: Sequence[Work], allocator: Allocator | None
    ) -> tuple[list[bytes], Aggregated]:
        """Send this silo's update, and aggregate everybody's; what was sent, by rank, too.

        Args:
            this_round: The round.
            pl_module: This silo's, with plain layers.
            work: What each silo did, by rank.
            allocator: May want the directions of updates compared.
        """
        rank, seals = self._processes.rank, self._seals
        payload = b"" if work[rank].is_idle else this_round.encode(pl_module, rank)
        payloads = self._processes.gather_bytes(payload if seals is None else seals.seal(payload))
        found = this_round.aggregate(
            pl_module,
            payloads,
            work,
            self._settings.aggregator,
            self._sketcher if allocator is not None and allocator.wants_update_divergence else None,
            self._limits,
            self.usual_norms,
            None if seals is None else seals.open,
        )
        self.usual_norms = list(found.usual_norms)
        return payloads, found
