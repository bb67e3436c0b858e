"""What *time* a round takes: device profiles, fleets, traces, the roofline, and the virtual clock.

A profile is a YAML file in which each figure has its source. A device changes virtual time only, never values.
"""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.devices.device_profile import DeviceProfile, available_profiles, load_profile
    from fedhq_lightning.devices.fleet import Fleet, FleetSpec, TracedFleet, available_fleets
    from fedhq_lightning.devices.layer_costs import LayerCost, measure_costs
    from fedhq_lightning.devices.roofline import ClientTime, round_seconds, step_seconds
    from fedhq_lightning.devices.trace import Availability, Trace

__all__ = [
    "Availability",
    "ClientTime",
    "DeviceProfile",
    "Fleet",
    "FleetSpec",
    "LayerCost",
    "Trace",
    "TracedFleet",
    "available_fleets",
    "available_profiles",
    "load_profile",
    "measure_costs",
    "round_seconds",
    "step_seconds",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.devices.device_profile": ["DeviceProfile", "available_profiles", "load_profile"],
        "fedhq_lightning.devices.fleet": ["Fleet", "FleetSpec", "TracedFleet", "available_fleets"],
        "fedhq_lightning.devices.layer_costs": ["LayerCost", "measure_costs"],
        "fedhq_lightning.devices.roofline": ["ClientTime", "round_seconds", "step_seconds"],
        "fedhq_lightning.devices.trace": ["Availability", "Trace"],
    },
)
