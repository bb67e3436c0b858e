"""What follows when clients fail: they sit out for a while, and a run that gets nothing from them any more ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from fedhq_lightning.errors import RunError
from fedhq_lightning.federated.not_finite import blames_data
from fedhq_lightning.run.records import ClientRecord, RoundRecord

Offences: TypeAlias = dict[int, tuple[int, int]]
"""Client's position -> how often in a row it was quarantined, and the last round that it sits out; 0 for none."""

CHANCES = 3
"""Quarantines in a row after which a client sits out."""
_MOST_FRUITLESS = 3
"""Rounds in a row, or clients of the first, that bring nothing before a run ends."""


class NoUsableUpdatesError(RunError):
    """A run ends because nobody sends it anything that it can use."""


def sitting_out(offences: Offences, round_number: int) -> frozenset[int]:
    """Positions of the clients that a round does without."""
    return frozenset(position for position, (_, until) in offences.items() if round_number <= until)


def after_round(
    offences: Offences, records: Iterable[tuple[int, ClientRecord]], round_number: int, sit_out_rounds: int
) -> tuple[Offences, list[ClientRecord]]:
    """What is held against clients after a round, and which of them begin to sit out.

    Args:
        offences: Before it.
        records: Of the round's clients, with their positions.
        round_number: Its number.
        sit_out_rounds: For how many rounds; 0 for none.
    """
    after, begin = dict(offences), list[ClientRecord]()
    for position, record in records:
        if record.status == "ok":
            after.pop(position, None)
        elif record.status == "quarantined" and sit_out_rounds:
            times = after.get(position, (0, 0))[0] + 1
            is_enough = times >= CHANCES
            # Once back, a client has as many chances as before.
            after[position] = (0, round_number + sit_out_rounds) if is_enough else (times, 0)
            if is_enough:
                begin.append(record)
    return after, begin


def check_fruitful(
    records: Sequence[RoundRecord], clients: Sequence[ClientRecord], min_updates: int, num_clients: int
) -> None:
    """End a run whose clients fail round after round, or all at once for what is wrong with their data.

    Args:
        records: Of all rounds so far.
        clients: Of the last one.
        min_updates: Usable updates that move the model.
        num_clients: Clients of the run that hold data.

    Raises:
        NoUsableUpdatesError: Three rounds in a row had too few, and quarantined clients; or all clients of round 1, of
            which there are three or all, hold data that are not finite.
    """
    is_enough = len(clients) >= min(_MOST_FRUITLESS, num_clients)
    if records[-1].round == 1 and is_enough and all(blames_data(each.reason) for each in clients):
        raise NoUsableUpdatesError(
            f"round 1 had no usable update: the data of all its {len(clients)} clients hold values that are not "
            f"finite, so the run ends with the model as it was before; {_told(clients)}"
        )
    last = records[-_MOST_FRUITLESS:]
    if len(last) == _MOST_FRUITLESS and all(each.quarantined and each.usable < min_updates for each in last):
        whole = " (on_client_error: raise shows the whole traceback)" if any(each.traceback for each in clients) else ""
        few = "no usable update" if min_updates == 1 else f"fewer than {min_updates} usable updates each"
        raise NoUsableUpdatesError(
            f"rounds {last[0].round} to {last[-1].round} had {few}, so the run ends with the model as it was before; "
            f"{_told(clients)}{whole}"
        )


def check_has_model(records: Sequence[RoundRecord], clients: Sequence[ClientRecord], min_updates: int) -> None:
    """Refuse to deploy a model that nobody has trained.

    Args:
        records: Of all rounds.
        clients: Of the last one, as far as this process knows.
        min_updates: Usable updates that move the model.

    Raises:
        NoUsableUpdatesError: No round moved it.
    """
    rounds = [each for each in records if each.round]
    if rounds and all(each.usable < min_updates for each in rounds):
        enough = "a usable update" if min_updates == 1 else f"{min_updates} usable updates"
        hint = ". round_deadline and the loaders' batch_size and drop_last are where to look"
        is_told = any(each.status == "quarantined" for each in clients)
        raise NoUsableUpdatesError(
            f"none of {len(rounds)} rounds had {enough}, so the model is untrained and not written; "
            f"{_told(clients)}{'' if is_told else hint}"
        )


def _told(clients: Sequence[ClientRecord]) -> str:
    failed = next((each for each in clients if each.status == "quarantined"), None)
    failed = failed or next((each for each in clients if each.status != "ok"), None)
    if failed is None:
        return "rounds.jsonl says why"
    return f"client {failed.client_id}: {failed.reason or 'late'}"
