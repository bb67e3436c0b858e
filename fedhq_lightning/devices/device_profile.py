"""What a device can do: peaks, memory and link, read from one YAML file a device.

A profile file names the kernels that exist, and every figure of `DeviceProfile`, each with `value`, `unit`, `source`
and `verified`; the source says for which precision and clock the figure holds:

    name: raspberry-pi-4
    kernels: {ptq: fp, qat: fused}
    figures:
      memory_bytes_per_second: {value: 5.56, unit: GB/s, source: STREAM copy, verified: true}
      int8_training_gain: {value: null, source: the core has no int8 dot product, verified: true}

`value: null` says that the device lacks the thing (bf16, int8 kernels only); leaving the figure out is an error,
because a gain must never be assumed. `verified: true` says that every factor of the figure was read in the source
named; what was derived with a factor that was not looked up stays `false`.

`kernels` says how a mode can be computed at best: `ptq` in `int8` or `fp`; `qat` with an `int8` forward, with `fused`
fake quantization (a compiler makes those kernels) or with torchao's conventional `fake` only.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.paths import expand_if_given
from fedhq_lightning.support.yaml_text import parse_yaml, read_yaml

_FLOPS = {"FLOP/s": 1.0, "MFLOP/s": 1e6, "GFLOP/s": 1e9, "TFLOP/s": 1e12}
_BYTES_PER_SECOND = {"B/s": 1.0, "MB/s": 1e6, "GB/s": 1e9}
_BYTES = {"B": 1.0, "MB": 1e6, "MiB": 2.0**20, "GB": 1e9, "GiB": 2.0**30}
_BITS_PER_SECOND = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

_UNITS: dict[str, dict[str, float]] = {
    "fp32_flops_per_second": _FLOPS,
    "bf16_flops_per_second": _FLOPS,
    "int8_training_gain": {"x": 1.0},
    "memory_bytes_per_second": _BYTES_PER_SECOND,
    "memory_bytes": _BYTES,
    "operator_seconds": _SECONDS,
    "uplink_bits_per_second": _BITS_PER_SECOND,
    "downlink_bits_per_second": _BITS_PER_SECOND,
}
_MAY_BE_ABSENT = ("bf16_flops_per_second", "int8_training_gain")
_KERNELS = {"ptq": ("int8", "fp"), "qat": ("int8", "fused", "fake")}
_ENTRIES = ("value", "unit", "source", "verified")

FLEET_PREFIX = "fleet-"
"""Shipped files with this prefix are fleets, the others profiles."""
MOST_DEVICES = 500
"""Of a fleet; a file each, which take half a second together. What differs by client besides, a trace says."""
CALIBRATION = "calibration"
"""The shipped file that is neither (see `analysis.calibration`)."""


@dataclass(frozen=True)
class DeviceProfile:
    """One kind of device.

    Attributes:
        name: What records and reports call the tier.
        fp32_flops_per_second: Peak of fp32 matrix products, FLOP/s (a multiply-add is two).
        bf16_flops_per_second: Peak of bf16 products, FLOP/s; None where the device has no fast bf16.
        int8_training_gain: Peak of int8 products over fp32 ones, a factor; None where there are no int8 kernels.
        memory_bytes_per_second: Bandwidth of main memory, B/s.
        memory_bytes: Size of the memory that training uses, B.
        operator_seconds: What a torch operator takes, forward and backward together, however little it does, s.
        uplink_bits_per_second: From the device to the server, bit/s.
        downlink_bits_per_second: From the server to the device, bit/s.
        ptq_kernel: The best that PTQ can be computed with.
        qat_kernel: The best that QAT can be computed with.
        unverified: Names of the figures that nobody has checked against their source.
        sources: Where each figure is from.

    Raises:
        ConfigurationError: A figure is missing, not a number or not positive; a kernel that does not exist, or that
            does not go with `int8_training_gain`.
    """

    name: str
    fp32_flops_per_second: float
    bf16_flops_per_second: float | None
    int8_training_gain: float | None
    memory_bytes_per_second: float
    memory_bytes: float
    operator_seconds: float
    uplink_bits_per_second: float
    downlink_bits_per_second: float
    ptq_kernel: Literal["int8", "fp"]
    qat_kernel: Literal["int8", "fused", "fake"]
    unverified: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError(f"device profile: name {self.name!r} is not a word; give the device one")
        for figure in _UNITS:
            _check_figure(f"device {self.name!r}", figure, getattr(self, figure))
        kernels = {"ptq": self.ptq_kernel, "qat": self.qat_kernel}
        _check_kernels(f"device {self.name!r}", kernels, self.int8_training_gain)

    @property
    def int8_flops_per_second(self) -> float | None:
        """Peak of int8 products, op/s; None where there are no int8 kernels."""
        return None if self.int8_training_gain is None else self.int8_training_gain * self.fp32_flops_per_second


def available_profiles() -> list[str]:
    """Names of the shipped devices, sorted."""
    return sorted(name for name in shipped_names() if not name.startswith(FLEET_PREFIX))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Read one device.

    Args:
        name_or_path: A shipped device's name, or a path that ends in `.yaml` or `.yml`.

    Returns:
        The profile in base units (FLOP/s, B, bit/s).

    Raises:
        ConfigurationError: Unknown name, missing file, or a figure that is missing, non-positive or of another unit.
    """
    name_or_path = expand_if_given(name_or_path, "device")
    if is_path(name_or_path):
        return _parse(read_mapping(Path(name_or_path)), str(name_or_path))
    name = str(name_or_path)
    allowed = available_profiles()
    if name not in allowed:
        raise ConfigurationError(
            f"unknown device {name!r}; shipped are {', '.join(allowed)}, and any path to a .yaml file works"
            f"{nearest(name, allowed)}"
        )
    return _parse(read_mapping(shipped_file(name)), name)


def load_profiles(names: Iterable[str | Path]) -> dict[str | Path, DeviceProfile]:
    """Read several devices, each once.

    Raises:
        ConfigurationError: As `load_profile`, or there are more than `MOST_DEVICES`.
    """
    different = dict.fromkeys(names)
    if len(different) > MOST_DEVICES:
        raise ConfigurationError(
            f"fleet: {len(different):,} different devices; at most {MOST_DEVICES} can be told apart"
        )
    return {name: load_profile(name) for name in different}


def device_file(device: str | Path, folder: Path) -> str | Path:
    """A device as a file in `folder` names it: a shipped name, or a path that counts from there."""
    device = expand_if_given(device, "device")
    return folder / device if is_path(device) else device


def is_path(name_or_path: str | Path) -> bool:
    """Whether a file is meant, and not a shipped name."""
    return isinstance(name_or_path, Path) or str(name_or_path).endswith((".yaml", ".yml"))


def shipped_file(name: str) -> Traversable:
    """The packaged YAML file of that name (without `.yaml`)."""
    return files("fedhq_lightning.devices") / f"{name}.yaml"


def read_mapping(file: Path | Traversable) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping: a user's, or a shipped one.

    Raises:
        ConfigurationError: It cannot be read, is not YAML, or holds something else.
    """
    try:
        content = read_yaml(file) if isinstance(file, Path) else parse_yaml(file.read_text(encoding="utf-8"))
    except ConfigurationError as error:
        raise ConfigurationError(f"cannot read {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file}: expected a mapping at the top, found {type(content).__name__}")
    return content


def shipped_names() -> list[str]:
    """Names of the packaged profiles and fleets."""
    listing = files("fedhq_lightning.devices").iterdir()
    names = [entry.name.removesuffix(".yaml") for entry in listing if entry.name.endswith(".yaml")]
    return [name for name in names if name != CALIBRATION]


def _parse(content: dict[str, Any], origin: str) -> DeviceProfile:
    _check_keys(origin, content, ("name", "title", "kernels", "figures"))
    kernels = content.get("kernels")
    if not isinstance(kernels, dict) or set(kernels) != set(_KERNELS):
        raise ConfigurationError(
            f"device {origin!r}: needs `kernels: {{ptq: ..., qat: ...}}`; {_allowed_kernels()}, found {kernels!r}"
        )
    figures = content.get("figures")
    if not isinstance(figures, dict):
        raise ConfigurationError(f"device {origin!r}: needs `figures`, a mapping of {', '.join(_UNITS)}")
    _check_keys(f"{origin}: figures", figures, tuple(_UNITS))
    values: dict[str, float | None] = {}
    for figure, units in _UNITS.items():
        if figure not in figures:
            absent = "; write `value: null` where the device has none" if figure in _MAY_BE_ABSENT else ""
            raise ConfigurationError(f"device {origin!r}: figure {figure} is missing{absent}")
        entry = figures[figure]
        if not isinstance(entry, dict) or "value" not in entry:
            raise ConfigurationError(f"device {origin!r}: {figure} needs `value`, `unit`, `source` and `verified`")
        _check_keys(f"{origin}: {figure}", entry, _ENTRIES)
        if not entry.get("source"):
            raise ConfigurationError(
                f"device {origin!r}: {figure} has no source; say where it is from, such as `source: data sheet` or "
                "`source: a guess`"
            )
        values[figure] = _in_base_unit(origin, figure, entry, units)
    return DeviceProfile(
        name=content.get("name", Path(origin).stem),
        ptq_kernel=kernels["ptq"],
        qat_kernel=kernels["qat"],
        unverified=tuple(figure for figure in _UNITS if figures[figure].get("verified") is not True),
        sources={figure: str(figures[figure]["source"]) for figure in _UNITS},
        **values,  # type: ignore[arg-type]  # __post_init__ refuses None where a number is due
    )


def _in_base_unit(origin: str, figure: str, entry: dict[str, Any], units: dict[str, float]) -> float | None:
    value = entry["value"]
    _check_figure(f"device {origin!r}", figure, value)
    if value is None:
        return None
    unit = entry.get("unit")
    if not isinstance(unit, str) or unit not in units:
        raise ConfigurationError(
            f"device {origin!r}: {figure} has unit {unit!r}; allowed are {', '.join(units)}{nearest(str(unit), units)}"
        )
    return float(value) * units[unit]


def _check_figure(where: str, figure: str, value: object) -> None:
    if value is None and figure in _MAY_BE_ABSENT:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # YAML 1.1 reads 48e9 as text; the message must not leave its author wondering.
    hint = "; YAML reads 48e9 as text, write 48.0e+9" if isinstance(value, str) else ""
    if not is_number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]  # number by then
        raise ConfigurationError(f"{where}: {figure} is {value!r}; it must be a positive number{hint}")


def _allowed_kernels() -> str:
    return "; ".join(f"{mode} is one of {', '.join(kernels)}" for mode, kernels in _KERNELS.items())


def _check_kernels(where: str, kernels: Mapping[str, object], gain: float | None) -> None:
    for mode, kernel in kernels.items():
        if kernel not in _KERNELS[mode]:
            raise ConfigurationError(
                f"{where}: kernels {mode} is {kernel!r}; {_allowed_kernels()}{nearest(str(kernel), _KERNELS[mode])}"
            )
    with_integers = [mode for mode, kernel in kernels.items() if kernel == "int8"]
    if with_integers and gain is None:
        raise ConfigurationError(
            f"{where}: int8 is a kernel of {' and '.join(with_integers)}, but int8_training_gain is null; name the "
            f"gain, or another kernel: {_allowed_kernels()}"
        )
    if not with_integers and gain is not None:
        raise ConfigurationError(
            f"{where}: int8_training_gain is {gain:g}, but no kernel is int8; write `kernels: {{ptq: int8, "
            "qat: int8}`, or `value: null` for the gain"
        )


def _check_keys(where: str, mapping: dict[str, Any], allowed: tuple[str, ...]) -> None:
    for key in mapping:
        if key not in allowed:
            raise ConfigurationError(
                f"{where}: unknown key {key!r}; allowed are {', '.join(allowed)}{nearest(str(key), allowed)}"
            )
