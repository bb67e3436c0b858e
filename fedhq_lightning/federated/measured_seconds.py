"""Seconds that local fits took, in place of those that the virtual clock predicts: of this run, or of another one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.run.run import Run
from fedhq_lightning.types import ClientId


@dataclass(frozen=True)
class MeasuredSeconds:
    """Makes the wall seconds of a local fit the seconds that the client computed in its round.

    The clock's stand where nothing was measured: clients that took no step, or of whom nothing came back, or no time;
    and what a client measured for the allocator.

    Attributes:
        run: The folder of the run whose seconds are replayed; None where they are measured.
        recorded: Wall seconds of that run's fits by round and client; None of those who took no step.
    """

    run: Path | None = None
    recorded: Mapping[tuple[int, ClientId], float | None] | None = None

    @classmethod
    def of(cls, asked: bool | str | Path, max_rounds: int) -> Self | None:
        """What `trainer.measured_seconds` asks for; None for the clock's seconds.

        Args:
            asked: True, False, or the folder of a run.
            max_rounds: Of the run that begins.

        Raises:
            ConfigurationError: The run cannot be read, or has fewer rounds.
        """
        if isinstance(asked, bool):
            return cls() if asked else None
        run, last, lost = Path(asked), 0, list[ClientRecord]()
        recorded: dict[tuple[int, ClientId], float | None] = {}
        for record in Run(run).stream():
            last = record.round
            lost += [each for each in record.clients if each.status in ("late", "quarantined")][: 1 - len(lost)]
            for each in record.clients:
                recorded[each.round, each.client_id] = each.fit_wall_seconds if each.num_steps else None
        if last < max_rounds:
            raise ConfigurationError(
                f"measured_seconds {str(asked)!r}: that run has {last} rounds, max_rounds is {max_rounds}; take as "
                "many at most"
            )
        if lost and lost[0].round <= max_rounds:
            rank_zero_warn(
                f"measured_seconds {str(asked)!r}: there, the update of client {lost[0].client_id} was left out in "
                f"round {lost[0].round}, and perhaps others; where they are not left out here too, the models differ "
                "from then on"
            )
        return cls(run, recorded)

    def put_into(self, record: ClientRecord) -> ClientRecord:
        """A client's record, with what its fit took as its `compute_seconds`.

        Raises:
            RunError: The run whose seconds are replayed has none of it.
        """
        if not record.num_steps:
            return record
        seconds: float | None = record.fit_wall_seconds
        if self.recorded is not None:
            key = record.round, record.client_id
            if key not in self.recorded:
                raise RunError(
                    f"measured_seconds: {self.run} has no client {record.client_id} in round {record.round}; replay it "
                    "with its own recipe: the same clients, cohorts and seed"
                )
            seconds = self.recorded[key]
        if seconds is None or not 0 < seconds < math.inf:
            return record
        return replace(record, compute_seconds=seconds)


def check_measured(asked: Any) -> None:
    """Refuse what is neither a truth value nor a run.

    Raises:
        ConfigurationError: It is not.
    """
    if not (isinstance(asked, bool | str | Path)) or asked == "":
        raise ConfigurationError(
            f"measured_seconds {asked!r}: must be true, false, or the folder of a run whose seconds are replayed"
        )
