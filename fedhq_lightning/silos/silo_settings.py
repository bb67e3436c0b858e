"""What a federation of silos was asked for, and by what its callback is recognised."""

from __future__ import annotations

from dataclasses import dataclass

from fedhq_lightning.devices import FleetSpec
from fedhq_lightning.drop_in.quantized_callback import QuantizedCallback
from fedhq_lightning.federated.aggregators import Aggregator
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


class SiloCallback(QuantizedCallback):
    """Base of the callback that makes a silo of every process: `fedhq_lightning.callbacks.FederatedAveraging`."""
