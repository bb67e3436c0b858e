"""The fleet: which device stands behind each client."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from typing_extensions import override

from fedhq_lightning.devices.device_profile import (
    FLEET_PREFIX,
    DeviceProfile,
    device_file,
    is_path,
    load_profiles,
    read_mapping,
    shipped_file,
    shipped_names,
)
from fedhq_lightning.devices.trace import Availability, Trace
from fedhq_lightning.devices.trace_file import parse_yaml_trace, read_csv_trace
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.paths import expand_if_given

FleetSpec: TypeAlias = "str | Path | Sequence[str | Path | DeviceProfile] | Mapping[str, int] | Fleet"
"""What `Fleet.resolve` takes."""

_MAX_BLOCK = 10_000
_CSV = ".csv"


@dataclass(frozen=True)
class Fleet:
    """A weighted mix of devices, dealt to client positions by the seed.

    Positions are dealt in blocks as long as the sum of the weights. Every full block holds each device exactly as
    often as its weight says; the order within a block depends on the seed and the block alone. So nothing is kept
    per client, and a client's device does not change when more clients register.

    Attributes:
        name: For messages and reports.
        mix: Devices and their whole-number weights, lowest terms.
        seed: Deals the devices.

    Raises:
        ConfigurationError: No device, two different devices of one name, or a weight that is not a whole number >= 1.
    """

    name: str
    mix: tuple[tuple[DeviceProfile, int], ...]
    seed: int

    def __post_init__(self) -> None:
        if not self.mix:
            raise ConfigurationError(f"fleet {self.name!r} has no device; name at least one")
        for profile, weight in self.mix:
            if isinstance(weight, bool) or not isinstance(weight, int) or weight < 1:
                raise ConfigurationError(
                    f"fleet {self.name!r}: weight of {profile.name!r} is {weight!r}; it must be a whole number >= 1"
                )
        _check_names(self)
        divisor = math.gcd(*(weight for _, weight in self.mix))
        object.__setattr__(self, "mix", tuple((profile, weight // divisor) for profile, weight in self.mix))
        if self.block_size > _MAX_BLOCK:
            raise ConfigurationError(
                f"fleet {self.name!r}: weights sum to {self.block_size} in lowest terms; "
                f"at most {_MAX_BLOCK} are dealt exactly, round them"
            )

    @classmethod
    def resolve(cls, spec: FleetSpec, seed: int) -> "Fleet":
        """Make a fleet of what a recipe or a script names.

        Args:
            spec: A shipped fleet's name (`uniform`, `mixed`), a path to a YAML file with `profiles: {device: weight}`,
                a path to a trace (CSV, or YAML with `clients`), a list of device names, paths or profiles (each as
                often as it is listed), a mapping device -> weight, or a Fleet, returned as it is.
            seed: Deals the devices; a trace says itself who has what.

        Returns:
            The fleet; `profile(position)` says who has what.

        Raises:
            ConfigurationError: Unknown fleet or device, unreadable file, no device, a bad weight, or a trace with
                gaps.
        """
        if isinstance(spec, Fleet):
            return spec
        if isinstance(spec, str | Path):
            return cls._from_file(expand_if_given(spec, "fleet"), seed)
        if isinstance(spec, Mapping):
            return cls("custom", _mix(spec, Path()), seed)
        if not isinstance(spec, Sequence):
            raise ConfigurationError(f"fleet: {spec!r} is neither a name, a file, a list nor a mapping of devices")
        read = load_profiles(entry for entry in spec if not isinstance(entry, DeviceProfile))
        mix: dict[DeviceProfile, int] = {}
        for entry in spec:
            profile = entry if isinstance(entry, DeviceProfile) else read[entry]
            mix[profile] = mix.get(profile, 0) + 1
        return cls("custom", tuple(mix.items()), seed)

    @classmethod
    def _from_file(cls, name_or_path: str | Path, seed: int) -> "Fleet":
        if is_fleet_file(name_or_path):
            path = Path(name_or_path)
            if path.suffix == _CSV:
                return TracedFleet.of(path.stem, read_csv_trace(path), seed)
            content, name, folder = read_mapping(path), path.stem, path.parent
        else:
            name, folder = str(name_or_path), Path()
            allowed = available_fleets()
            if name not in allowed:
                raise ConfigurationError(
                    f"unknown fleet {name!r}; shipped are {', '.join(allowed)}; a path to a .yaml file or a list of "
                    f"devices works too{nearest(name, allowed)}"
                )
            content = read_mapping(shipped_file(FLEET_PREFIX + name))
        if "clients" in content:
            return TracedFleet.of(name, parse_yaml_trace(content, name, folder), seed)
        profiles = content.get("profiles")
        if not isinstance(profiles, dict) or set(content) != {"profiles"}:
            found = ", ".join(map(repr, content)) or "nothing"
            raise ConfigurationError(
                f"fleet {name!r}: expected only `profiles: {{device: weight}}`, or a trace's `clients`, found {found}"
            )
        return cls(name, _mix(profiles, folder), seed)

    @property
    def digest(self) -> str:
        """Tells fleets of other devices, figures, links or availability apart, whatever name and seed they have."""
        found = blake2b(digest_size=8)
        for part in _parts(self._content):
            found.update(part)
        return found.hexdigest()

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the devices, in the order of the mix."""
        return tuple(profile.name for profile, _ in self.mix)

    @property
    def _content(self) -> object:
        """What the digest is taken of: the content of the files."""
        return self.mix

    @property
    def block_size(self) -> int:
        """Clients in a block: the sum of the weights."""
        return sum(weight for _, weight in self.mix)

    @property
    def availability(self) -> Availability | None:
        """When clients are there; None where everybody always is."""
        return None

    def check_size(self, num_clients: int) -> None:
        """Refuse a fleet of another size than the data's. A mix fits any number of clients.

        Args:
            num_clients: Registered clients, those without data included.

        Raises:
            ConfigurationError: It names more clients, or fewer.
        """

    def profile(self, position: int) -> DeviceProfile:
        """The device of the client at a position of the run's client list.

        Args:
            position: >= 0; there is no upper end.

        Raises:
            ValueError: The position is negative.
        """
        if position < 0:
            raise ValueError(f"client position {position} is negative")
        block, offset = divmod(position, self.block_size)
        card = _shuffled(self.seed, block, self.block_size)[offset]
        for profile, weight in self.mix:
            if card < weight:
                return profile
            card -= weight
        raise AssertionError("a block holds as many cards as the weights sum to")

    def device(self, position: int) -> DeviceProfile:
        """A client's device as its tier has it, without a link of the client's own.

        It is one of `mix`, so that what depends on the device alone is computed once a tier.

        Args:
            position: As in `profile`.

        Raises:
            ValueError: As in `profile`.
        """
        return self.profile(position)


@dataclass(frozen=True)
class TracedFleet(Fleet):
    """A fleet that a trace describes client by client.

    Attributes:
        mix: The trace's devices, as they are without a client's own link, and how many clients have each.
        trace: The rest.

    Raises:
        ConfigurationError: Two different devices of one name.
    """

    trace: Trace

    def __post_init__(self) -> None:
        _check_names(self)

    @classmethod
    def of(cls, name: str, trace: Trace, seed: int) -> "TracedFleet":
        """The fleet of a trace."""
        return cls(name, trace.mix, seed, trace)

    @property
    @override
    def availability(self) -> Availability | None:
        return self.trace.availability

    @property
    @override
    def _content(self) -> object:
        return self.trace

    @override
    def check_size(self, num_clients: int) -> None:
        if self.trace.num_clients != num_clients:
            raise ConfigurationError(
                f"fleet {self.name!r}: its trace names {self.trace.num_clients} clients, the data has {num_clients}; "
                "a trace names every client of the data, and no other"
            )

    @override
    def profile(self, position: int) -> DeviceProfile:
        """The device of the client at a position, with its own link; the name stays the device's.

        Args:
            position: 0 to one less than the trace's clients.

        Raises:
            ValueError: The position is outside.
        """
        self._check_position(position)
        return self.trace.profile(position)

    @override
    def device(self, position: int) -> DeviceProfile:
        self._check_position(position)
        return self.trace.device(position)

    def _check_position(self, position: int) -> None:
        if not 0 <= position < self.trace.num_clients:
            raise ValueError(f"client position {position}: the trace names 0 to {self.trace.num_clients - 1}")


def is_fleet_file(name_or_path: str | Path) -> bool:
    """Whether a file is meant, and not a shipped name."""
    return is_path(name_or_path) or str(name_or_path).endswith(_CSV)


def expand_fleet(spec: Any) -> Any:
    """What `Fleet.resolve` takes, with `~` and variables of the environment put in, for the record of a run."""
    if isinstance(spec, Mapping):
        return {expand_if_given(device, "fleet"): weight for device, weight in spec.items()}
    if isinstance(spec, list | tuple):
        return [expand_if_given(device, "fleet") for device in spec]
    return expand_if_given(spec, "fleet")


def available_fleets() -> list[str]:
    """Names of the shipped fleets, sorted."""
    return sorted(name.removeprefix(FLEET_PREFIX) for name in shipped_names() if name.startswith(FLEET_PREFIX))


def _check_names(fleet: Fleet) -> None:
    if len(set(fleet.tiers)) != len(fleet.mix):
        raise ConfigurationError(f"fleet {fleet.name!r}: two devices share a name; tiers are told apart by it")


def _mix(profiles: Mapping[str, int], folder: Path) -> tuple[tuple[DeviceProfile, int], ...]:
    """Load the devices; files are named relative to the fleet's own."""
    found = load_profiles(device_file(device, folder) for device in profiles)
    return tuple((found[device_file(device, folder)], weight) for device, weight in profiles.items())


@lru_cache(maxsize=64)
def _shuffled(seed: int, block: int, size: int) -> tuple[int, ...]:
    """0..size-1 in an order of (seed, block). By hash, because `random` does not promise its stream for ever."""
    return tuple(sorted(range(size), key=lambda card: blake2b(f"fleet/{seed}/{block}/{card}".encode()).digest()))


def _parts(value: Any) -> Iterator[bytes]:
    """All that a fleet holds, in order."""
    if is_dataclass(value):
        for field in fields(value):
            yield field.name.encode()
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, tuple):
        for each in value:
            yield from _parts(each)
    else:
        yield value.tobytes() if isinstance(value, np.ndarray) else f"{value!r};".encode()
