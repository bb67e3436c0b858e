"""What a federation of silos was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedhq_lightning.devices import FleetSpec
from fedhq_lightning.federated.algorithms.aggregator import Aggregator
from fedhq_lightning.federated.wire import Uplink
from fedhq_lightning.quantize import LaneOptions, QuantScheme


@dataclass(frozen=True)
class SiloSettings:
    """The settings of one federation, as every part of it gets them; see `FederatedAveraging` for what each means."""

    every_n_epochs: int
    scheme: QuantScheme | None
    uplink: Uplink
    lanes: LaneOptions | None
    aggregator: Aggregator
    fleet: FleetSpec
    retake_batch_statistics: bool
    max_norm_ratio: float | None
    keys: Path | None
