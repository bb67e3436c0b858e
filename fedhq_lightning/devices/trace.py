"""A fleet's trace: each client's device, its own link, and when it is available.

A CSV file, one row per client and window:

    client,device,uplink_mbit_per_second,downlink_mbit_per_second,available_from_seconds,available_until_seconds
    0,phone-snapdragon-855,2.5,20,0,28800
    0,,,,64800,86400
    1,raspberry-pi-4,,,,

or YAML with `clients`, a list of the same rows, and `period_seconds`, which in CSV is one more column.

- `client` counts from 0: the place in the data module's `client_ids`. Every client is there; order does not matter.
- `device` is a shipped name or a file beside the trace; a link left empty is the device's. A client's first row says
  them; its further rows leave them empty or say the same.
- A client without a window is always available. Windows hold their begin and not their end, in virtual seconds since
  the start of the run. They repeat after `period_seconds`, by default the end of the last window of all clients.

Active and inactive times that repeat are as in the traces of FedScale (Lai et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedhq_lightning.devices.device_profile import DeviceProfile


@dataclass(frozen=True, eq=False)
class Availability:
    """When clients are there, window by window; repeats for ever.

    Attributes:
        positions: (num_windows,) int64, the client of each window, ascending; a client's windows do not overlap.
        begins: (num_windows,) float64, virtual seconds from the start of the period; >= 0.
        ends: (num_windows,) float64, the first second after the window; at most the period.
        period_seconds: Virtual seconds after which everything repeats.
    """

    positions: NDArray[np.int64]
    begins: NDArray[np.float64]
    ends: NDArray[np.float64]
    period_seconds: float

    def without(self, positions: Collection[int]) -> Availability:
        """The availability of all clients but those at `positions`."""
        if not positions:
            return self
        kept = ~np.isin(self.positions, np.fromiter(positions, np.int64))
        return replace(self, positions=self.positions[kept], begins=self.begins[kept], ends=self.ends[kept])

    def wait_seconds(self, seconds: float) -> float:
        """Virtual seconds until somebody is there; 0 where somebody is.

        Args:
            seconds: Virtual seconds since the start of the run.
        """
        return self._next(seconds)[0]

    def present(self, seconds: float) -> NDArray[np.int64]:
        """Positions of the clients that are there, ascending; after `wait_seconds` where nobody is, so never none.

        Args:
            seconds: Virtual seconds since the start of the run.
        """
        return self.positions[self._is_open(self._next(seconds)[1])]

    def _next(self, seconds: float) -> tuple[float, float]:
        """The wait, and the second of the period in which it ends.

        That second is a window's own begin: the sum of time and wait may be rounded to just before it.
        """
        phase = math.fmod(seconds, self.period_seconds)
        if self._is_open(phase).any():
            return 0.0, phase
        later = self.begins[self.begins > phase]
        if later.size:
            begin = float(later.min())
            return begin - phase, begin
        begin = float(self.begins.min())
        return self.period_seconds - phase + begin, begin

    def _is_open(self, phase: float) -> NDArray[np.bool_]:
        is_open: NDArray[np.bool_] = (self.begins <= phase) & (phase < self.ends)
        return is_open


@dataclass(frozen=True, eq=False)
class Trace:
    """What a trace says of every client, in a few arrays.

    Attributes:
        profiles: The devices, each once.
        devices: (num_clients,) int32, place in `profiles`.
        uplinks: (num_clients,) float64, bit/s; NaN where the device's own holds.
        downlinks: (num_clients,) float64, bit/s; NaN where the device's own holds.
        availability: None where everybody always is.
    """

    profiles: tuple[DeviceProfile, ...]
    devices: NDArray[np.int32]
    uplinks: NDArray[np.float64]
    downlinks: NDArray[np.float64]
    availability: Availability | None

    @property
    def num_clients(self) -> int:
        """How many clients it names."""
        return len(self.devices)

    @property
    def mix(self) -> tuple[tuple[DeviceProfile, int], ...]:
        """The devices, and how many clients have each."""
        counts = np.bincount(self.devices, minlength=len(self.profiles)).tolist()
        return tuple(zip(self.profiles, counts, strict=True))

    def device(self, position: int) -> DeviceProfile:
        """The client's device, as it is for everybody who has it."""
        return self.profiles[int(self.devices[position])]

    def profile(self, position: int) -> DeviceProfile:
        """The client's device, under the device's name, with the client's own link."""
        profile = self.device(position)
        links = {"uplink_bits_per_second": self.uplinks, "downlink_bits_per_second": self.downlinks}
        own = {figure: float(given[position]) for figure, given in links.items() if not math.isnan(given[position])}
        if not own:
            return profile
        return replace(
            profile,
            **own,  # type: ignore[arg-type]  # figures that are plain numbers
            unverified=tuple(figure for figure in profile.unverified if figure not in own),
            sources={**profile.sources, **dict.fromkeys(own, "the fleet's trace")},
        )
