"""The fleet's devices: profiles in YAML, each figure with its source, and how a fleet deals them to clients."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhq_lightning.devices.fleet import Fleet, FleetSpec, TracedFleet, available_fleets
    from fedhq_lightning.devices.profile import DeviceProfile, available_profiles, load_profile
    from fedhq_lightning.devices.trace import Availability, Trace

__all__ = [
    "Availability",
    "DeviceProfile",
    "Fleet",
    "FleetSpec",
    "Trace",
    "TracedFleet",
    "available_fleets",
    "available_profiles",
    "load_profile",
]

_MODULE_OF_NAME = {
    "Availability": "fedhq_lightning.devices.trace",
    "DeviceProfile": "fedhq_lightning.devices.profile",
    "Fleet": "fedhq_lightning.devices.fleet",
    "FleetSpec": "fedhq_lightning.devices.fleet",
    "Trace": "fedhq_lightning.devices.trace",
    "TracedFleet": "fedhq_lightning.devices.fleet",
    "available_fleets": "fedhq_lightning.devices.fleet",
    "available_profiles": "fedhq_lightning.devices.profile",
    "load_profile": "fedhq_lightning.devices.profile",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562) and keep it."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
