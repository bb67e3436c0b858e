"""What a run says of its clients on the terminal; the records have it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.federated.failing_clients import CHANCES
from fedhq_lightning.run.records import ClientRecord

_MOST_NAMED = 5
"""Clients in a message, and messages of a round."""


class ClientWarnings:
    """Says what was wrong with clients.

    Args:
        wanted_sensitivity: What clients shall measure, or None.
        sit_out_rounds: Rounds that repeated offenders sit out.
    """

    def __init__(self, wanted_sensitivity: str | None, sit_out_rounds: int) -> None:
        self._wanted_sensitivity = wanted_sensitivity
        self._sit_out_rounds = sit_out_rounds
        self._warned_of_sensitivity = False
        self._warned_of_idle = False

    def of_round(self, records: Sequence[ClientRecord], sit_out: Sequence[ClientRecord]) -> None:
        """Tell of a round.

        Args:
            records: Of all its clients.
            sit_out: Those that sit out from now on.
        """
        self._of_idle(records)
        self._of_sensitivity(records)
        self._of_quarantined(records)
        if sit_out:
            who, sits = ("client", "sits") if len(sit_out) == 1 else ("clients", "sit")
            rank_zero_warn(
                f"round {sit_out[0].round}: {who} {_named(sit_out)}, quarantined {CHANCES} times in a row, {sits} out "
                f"the next {self._sit_out_rounds} rounds"
            )

    def _of_quarantined(self, records: Sequence[ClientRecord]) -> None:
        """A line a client; of many clients a line a reason."""
        quarantined = [record for record in records if record.status == "quarantined"]
        alike: dict[object, list[ClientRecord]] = {}
        for record in quarantined:
            alike.setdefault(record.reason if len(quarantined) > _MOST_NAMED else record.client_id, []).append(record)
        for several in list(alike.values())[:_MOST_NAMED]:
            who = f"client {several[0].client_id} is" if len(several) == 1 else f"clients {_named(several)} are"
            rank_zero_warn(f"round {several[0].round}: {who} quarantined: {several[0].reason}")
        if len(alike) > _MOST_NAMED:
            rank_zero_warn(
                f"round {quarantined[0].round}: {len(quarantined)} of {len(records)} clients are quarantined, for "
                f"{len(alike)} reasons; rounds.jsonl has them all"
            )

    def _of_idle(self, records: Sequence[ClientRecord]) -> None:
        """Once a run: how many clients took no step, and why."""
        idle = [record for record in records if record.status == "idle"]
        if not idle or self._warned_of_idle:
            return
        self._warned_of_idle = True
        reasons = Counter(record.reason for record in idle)
        rank_zero_warn(
            f"round {idle[0].round}: {len(idle)} of {len(records)} clients took no step, so they send nothing and "
            f"count nothing: {_named(idle)} ({'; '.join(f'{count}: {why}' for why, count in sorted(reasons.items()))}; "
            "said once a run, rounds.jsonl and summary.json have them all under `idle`)"
        )

    def _of_sensitivity(self, records: Sequence[ClientRecord]) -> None:
        """Once a run: that clients measured a sensitivity, and it is no number."""
        if self._wanted_sensitivity is None or self._warned_of_sensitivity:
            return
        measured = [record for record in records if record.status in ("ok", "quarantined") and not record.traceback]
        unmeasured = [record for record in measured if record.sensitivity is None]
        if unmeasured:
            self._warned_of_sensitivity = True
            rank_zero_warn(
                f"round {records[0].round}: the sensitivity ({self._wanted_sensitivity}) of {len(unmeasured)} clients "
                f"is not finite, so the allocator goes without: {_named(unmeasured)} (said once a run)"
            )


def _named(records: Sequence[ClientRecord]) -> str:
    names = ", ".join(str(record.client_id) for record in records[:_MOST_NAMED])
    return names if len(records) <= _MOST_NAMED else f"{names} and {len(records) - _MOST_NAMED} more"
