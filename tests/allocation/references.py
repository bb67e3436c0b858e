"""Runs for random allocators to be matched to, without running them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhq_lightning.types import ClientId, Mode


def write_reference(
    folder: Path,
    rounds: Sequence[Mapping[ClientId, Mode]],
    tier=lambda client_id: "device",
    end: str = "\n",
) -> str:
    """What allocators read of a `rounds.jsonl`: round 0, then one line a round."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"round": 0, "clients": []}]
    for number, modes in enumerate(rounds, start=1):
        clients = [{"client_id": each, "tier": tier(each), "mode": mode} for each, mode in modes.items()]
        lines.append({"round": number, "clients": clients})
    (folder / "rounds.jsonl").write_text("\n".join(map(json.dumps, lines)) + end)
    return str(folder)
