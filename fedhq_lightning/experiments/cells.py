"""What the folder of a comparison holds: the settings that all cells share, and a small JSON file a cell.

A cell is one allocator on one point of the varied keys, with one seed, and is kept when its run has ended.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NotRequired

from typing_extensions import TypedDict

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import LaneOptions
from fedhq_lightning.recipe.identity import changes, in_words
from fedhq_lightning.run.records import LEFT_OUT
from fedhq_lightning.run.run import COLUMNS, Clock, Run, curve
from fedhq_lightning.run.summary_form import Summary
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.typed_json import read_json
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import MODES, ClientId, Mode

FILE_NAME = "comparison.json"
FORMAT_VERSION = 1
_MOST_BYTES = 2**28
"""Of a file: a cell has 20 bytes for every client and round."""
_LONGEST_NAME = 44
_NUMBERS = ("wall_seconds", "virtual_seconds", "uplink_bytes", "downlink_bytes")
_ALWAYS_KNOWN = [name for name in COLUMNS if not name.startswith("metric_")]
_SUMMARY = (
    *("rounds", "best_round", "metric_fp", "metric_quantized", "test_metrics", "scheme"),
    *("wall_seconds", "fit_wall_seconds", "virtual_seconds", "allocator_seconds"),
    *("uplink_bytes", "downlink_bytes", "mode_counts"),
    *LEFT_OUT,
    *("compiled_kernels", "versions"),
)


@dataclass(frozen=True)
class Cell:
    """What a comparison keeps of one run.

    Attributes:
        allocator: Name of the allocator; empty for the recipe's own.
        seed: Of the run.
        fingerprint: Of everything that decides the run.
        described: What the allocator was made with, and what the varied keys hold.
        metric_name: What is monitored.
        larger_is_better: Whether more of it is better.
        summary: The better part of the run's `summary.json`.
        rounds: `Run.columns`.
        tiers: Names of the device tiers.
        clients: Per round from 1, `(client_id, position in tiers, mode)` of each client; random allocators are matched
            to them.
        setting: What the varied keys hold, such as `aggregator=FedProx`; empty where none is varied.
    """

    allocator: str
    seed: int
    fingerprint: str
    described: Mapping[str, Any]
    metric_name: str
    larger_is_better: bool
    summary: Mapping[str, Any]
    rounds: Mapping[str, Sequence[Any]]
    tiers: Sequence[str]
    clients: Sequence[Sequence[tuple[ClientId, int, Mode]]]
    setting: str = ""

    @property
    def name(self) -> str:
        """What it is called beside the others of its seed."""
        return name_of(self.allocator, self.setting)

    def curve(self, clock: Clock) -> tuple[list[float], list[float]]:
        """When each evaluation was there, and its quantized metric; round 0 first."""
        return curve(self.rounds, clock)


def name_of(allocator: str, setting: str) -> str:
    """What a cell is called beside the others of its seed: by its allocator, by what the varied keys hold, or both."""
    return ", ".join(filter(None, (allocator, setting)))


def keep_settings(folder: Path, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make a folder that of this comparison, or make sure that it is.

    Args:
        folder: Made if it is not there.
        name: Of the recipe.
        settings: What all cells share.

    Returns:
        The settings that the folder was made with. They may lack arguments that the package has gained since, as long
        as those have their defaults.

    Raises:
        ConfigurationError: The folder is that of another comparison, or holds other things, or cannot be made.
    """
    path = folder / FILE_NAME
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{folder} cannot be made: {error.strerror}; name another --folder") from error
        if any(each.name != ".lock" for each in folder.iterdir()):
            raise ConfigurationError(
                f"{folder} holds other things, and no {FILE_NAME}; name a new or empty folder with --folder"
            )
        write_atomically(path, json.dumps({"recipe": name, "settings": settings}, indent=1) + "\n")
    try:
        kept = read_json(path, _Settings, _MOST_BYTES)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; name another --folder") from error
    before = kept["settings"]
    if found := changes(before, json.loads(json.dumps(settings)), default_of=_default):
        raise ConfigurationError(
            f"{folder} is the folder of another comparison (recipe {kept.get('recipe')}): {in_words(found)}; name "
            "another --folder, or give the same values"
        )
    return before


def cell_path(folder: Path, allocator: str, seed: int, setting: str = "") -> Path:
    """Where a cell is kept."""
    name = allocator.replace(":", "-")
    if setting:
        # A name of any length and with any characters, and yet one file for each.
        digits = hashlib.blake2b(setting.encode(), digest_size=3).hexdigest()
        readable = re.sub(r"[^\w.=+-]+", "-", name_of(name, setting))[:_LONGEST_NAME].strip("-")
        name = f"{readable}-{digits}"
    return folder / f"{name}-seed-{seed}.json"


def cell_of_run(
    run: Run,
    allocator: str,
    seed: int,
    fingerprint: str,
    described: Mapping[str, Any],
    larger_is_better: bool,
    setting: str = "",
) -> Cell:
    """What is kept of a finished run. Without a scheme the global model itself is the deployed one.

    Args:
        run: It.
        allocator: As in `Cell`, like the following.
        seed: See there.
        fingerprint: See there.
        described: See there.
        larger_is_better: See there.
        setting: See there.

    Raises:
        ConfigurationError: The deployed model was never evaluated.
    """
    columns, summary = run.columns(), dict(run.summary)
    if summary.get("scheme") is None:
        columns["metric_quantized"], summary["metric_quantized"] = columns["metric_fp"], summary.get("metric_fp")
    if not any(value is not None for value in columns["metric_quantized"][1:]):
        raise ConfigurationError(
            f"{name_of(allocator, setting)}, seed {seed}: the deployed model was not evaluated, so nothing can be "
            "compared; the module needs a validation_step that logs a metric, and the data held-out examples"
        )
    tiers: dict[str, int] = {}
    clients = [
        [(each.client_id, tiers.setdefault(each.tier, len(tiers)), each.mode) for each in record.clients]
        for record in run.stream()
        if record.round > 0
    ]
    return Cell(
        allocator,
        seed,
        fingerprint,
        described,
        run.metric_name,
        larger_is_better,
        {name: summary[name] for name in _SUMMARY if name in summary},
        {name: _rounded(name, values) for name, values in columns.items()},
        list(tiers),
        clients,
        setting,
    )


def _rounded(name: str, values: Sequence[Any]) -> list[Any]:
    """Of what allocators log six digits are enough."""
    if not name.startswith("allocation/"):
        return list(values)
    return [float(f"{value:.6g}") if isinstance(value, float) else value for value in values]


def write_cell(cell: Cell, path: Path) -> None:
    """Write a cell, one key a line.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    content = {"format_version": FORMAT_VERSION, **asdict(cell)}
    content["summary"] = {name: _as_json(value) for name, value in cell.summary.items()}
    content["rounds"] = {name: [_as_json(value) for value in values] for name, values in cell.rounds.items()}
    lines = [f"{json.dumps(key)}: {_dumped(value)}" for key, value in content.items()]
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _as_json(value: Any) -> Any:
    """What strict JSON holds: a value that is not finite as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _dumped(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def read_cell(path: Path) -> Cell:
    """A cell that was kept.

    Raises:
        ConfigurationError: The file is damaged, or of another format.
    """
    try:
        version = read_json(path, _Versioned, _MOST_BYTES)["format_version"]
        if version == FORMAT_VERSION:
            return _checked(Cell(**read_json(path, _WrittenCell, _MOST_BYTES)))
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; remove it to run the cell again") from error
    raise ConfigurationError(
        f"{path} has format {version!r}, this version reads {FORMAT_VERSION}; remove it to run the cell again"
    )


class _Settings(TypedDict):
    recipe: str
    settings: dict[str, Any]


class _Versioned(TypedDict):
    format_version: Any


class _WrittenCell(TypedDict):
    allocator: str
    seed: int
    fingerprint: str
    described: dict[str, Any]
    metric_name: str
    larger_is_better: bool
    summary: Summary
    rounds: dict[str, list[int | float | None]]
    tiers: list[str]
    clients: list[list[tuple[ClientId, int, Mode]]]
    setting: NotRequired[str]


def _checked(cell: Cell) -> Cell:
    """A cell that can be compared.

    Raises:
        ConfigurationError: Its rounds or its summary lack something, or its clients have no tier.
    """
    lacking = [name for name in _NUMBERS if cell.summary.get(name) is None]
    lacking += [name for name in (*COLUMNS, *MODES) if name not in cell.rounds]
    if lacking:
        raise ConfigurationError(f"it is damaged: it has no {lacking[0]}")
    if len({len(values) for values in cell.rounds.values()}) > 1:
        raise ConfigurationError("it is damaged: its rounds are columns of several lengths")
    if all(value is None for value in cell.rounds["metric_quantized"][1:]):
        raise ConfigurationError("it is damaged: no round of it was evaluated")
    if any(None in cell.rounds[name] for name in (*_ALWAYS_KNOWN, *MODES)):
        raise ConfigurationError("it is damaged: a round lacks something")
    if any(not 0 <= tier < len(cell.tiers) for clients in cell.clients for _, tier, _ in clients):
        raise ConfigurationError("it is damaged: a client has a tier that is not there")
    return cell


def _default(name: str, owner: str | None, key: str) -> Any:
    """The default of an argument that the package has gained since."""
    made: type | None = {"trainer": FederatedTrainer, "trainer.lanes": LaneOptions}.get(name)
    if made is None and owner is not None:
        made = resolve_name(owner)
    parameters = inspect.signature(made).parameters if made else {}
    default = parameters[key].default if key in parameters else None
    return None if default is inspect.Parameter.empty else default
