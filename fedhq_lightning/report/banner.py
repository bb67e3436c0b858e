"""What stands at the top of the report where updates did not count: red where the run came to nothing by it."""

from __future__ import annotations

import html
from collections.abc import Sequence

from fedhq_lightning.report.page import paragraph
from fedhq_lightning.run.client_history import ClientHistory
from fedhq_lightning.run.run import Run

_MOST_NAMED = 5


def banner(run: Run) -> str:
    """Which clients' updates did not count, and why; empty where none was quarantined and the run has a model."""
    failure = str(run.summary.get("failure") or "")
    quarantined = [client for client in run.clients if "quarantined" in client.left_out.values()]
    if failure:
        return _box("alarm", "This run has no model to use", f"{failure[:1].upper()}{failure[1:]}.", quarantined)
    if not quarantined:
        return ""
    updates = sum(list(client.left_out.values()).count("quarantined") for client in quarantined)
    fits = sum(len(client.modes) for client in run.clients)
    whose = "1 client" if len(quarantined) == 1 else f"{len(quarantined):,} clients"
    text = f"{updates:,} of {fits:,} updates, of {whose}, failed a check and did not count."
    return _box("notice", "Updates left out", text + _idle_rounds(run), quarantined)


def _idle_rounds(run: Run) -> str:
    """Rounds in which nothing counted."""
    rounds = [record.round for record in run.rounds if record.round and not record.usable]
    if not rounds:
        return ""
    shown = ", ".join(map(str, rounds[:_MOST_NAMED])) + (" and others" if len(rounds) > _MOST_NAMED else "")
    return f" In round{'s' if len(rounds) > 1 else ''} {shown} none did: the model stayed as it was."


def _box(kind: str, title: str, text: str, clients: Sequence[ClientHistory]) -> str:
    most = sorted(clients, key=lambda client: -len(client.left_out))[:_MOST_NAMED]
    alike: dict[str, list[str]] = {}
    for client in most:
        alike.setdefault(_told(client), []).append(str(client.client_id))
    told = [f"client{'s' if len(names) > 1 else ''} {', '.join(names)}, {text}" for text, names in alike.items()]
    lines = "".join(f"<li>{html.escape(each)}</li>" for each in told)
    listed = f"<ul>{lines}</ul>" if lines else ""
    more = paragraph(f"And {len(clients) - len(most):,} more.") if len(clients) > len(most) else ""
    label = html.escape(title)
    return f'<aside class="{kind}" aria-label="{label}"><b>{label}</b>\n{paragraph(text)}{listed}\n{more}</aside>'


def _told(client: ClientHistory) -> str:
    """In how many rounds, and the most frequent reason why."""
    reasons = {reason: count for reason, count in client.reasons.items() if reason.startswith("quarantined")}
    reason = max(reasons, key=lambda each: reasons[each])
    of = len(client.modes)
    return (
        f"in {sum(reasons.values()):,} of {of:,} round{'s' if of > 1 else ''}: {reason.removeprefix('quarantined: ')}"
    )
