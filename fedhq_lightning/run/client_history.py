"""One client over a whole run."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.types import MODES, ClientId, Mode


@dataclass
class ClientHistory:
    """One client over the run.

    Attributes:
        client_id: The client.
        tier: Name of its device profile.
        modes: Round -> mode, for the rounds that it took part in.
        left_out: Round -> `late`, `idle` or `quarantined`, for the rounds in which its update was not used.
        reasons: Why, with how often.
        download_seconds: Virtual seconds of all its rounds together.
        compute_seconds: Likewise.
        upload_seconds: Likewise.
        analysis_seconds: Likewise, of what it measured for the allocator.
        uplink_bytes: Bytes that it sent in all its rounds.
    """

    client_id: ClientId
    tier: str
    modes: dict[int, Mode] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    download_seconds: float = 0.0
    compute_seconds: float = 0.0
    upload_seconds: float = 0.0
    analysis_seconds: float = 0.0
    uplink_bytes: int = 0

    def add(self, record: ClientRecord) -> None:
        """Take up one more round."""
        self.modes[record.round] = record.mode
        if record.status != "ok":
            self.left_out[record.round] = record.status
            self.reasons[f"{record.status}: {record.reason}" if record.reason else record.status] += 1
        self.download_seconds += record.download_seconds
        self.compute_seconds += record.compute_seconds
        self.upload_seconds += record.upload_seconds
        self.analysis_seconds += record.analysis_seconds
        self.uplink_bytes += record.uplink_bytes

    @property
    def mean_seconds(self) -> tuple[float, float, float]:
        """Virtual seconds of one local fit: download, compute, upload."""
        count = max(len(self.modes), 1)
        return self.download_seconds / count, self.compute_seconds / count, self.upload_seconds / count

    @property
    def mean_analysis_seconds(self) -> float:
        """Virtual seconds of a round in which it measured for the allocator."""
        return self.analysis_seconds / max(len(self.modes), 1)

    @property
    def mode_counts(self) -> dict[str, int]:
        """Rounds per mode, every mode named."""
        modes = list(self.modes.values())
        return {mode: modes.count(mode) for mode in MODES}


def split(records: Iterable[RoundRecord]) -> tuple[list[RoundRecord], list[ClientHistory]]:
    """Rounds without their clients, and the clients over the rounds: far smaller than all records together.

    Args:
        records: Of one run, in order; consumed one at a time.
    """
    rounds: list[RoundRecord] = []
    clients: dict[ClientId, ClientHistory] = {}
    for record in records:
        rounds.append(record.without_clients())
        for client in record.clients:
            clients.setdefault(client.client_id, ClientHistory(client.client_id, client.tier)).add(client)
    return rounds, list(clients.values())
