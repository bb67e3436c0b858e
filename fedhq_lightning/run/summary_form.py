"""The types of what `summary.json` holds, so that one that was damaged or made up is refused before anybody shows it.

A summary of another version may lack keys, or have others, which are kept as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.typed_json import read_json
from fedhq_lightning.types import ClientId, Count, Mode, Seconds

_MOST_BYTES = 2**24
"""Of the file: a thousand times what it usually has, or an accuracy for each of 200,000 classes."""
_OTHER_KEYS: Any = {"extra": "allow"}


class SpentPrivacy(TypedDict, total=False):
    """What the run promises of its clients, and what it spent."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    mechanism: Required[str]
    hides: Required[str]
    epsilon: Required[float | None]
    delta: Required[float]
    noise_multiplier: float
    norm: float
    accountant: str
    max_epsilon: float | None
    ended_by_budget: bool


class WorstClient(TypedDict, total=False):
    """What the deployed model does for the client that it serves worst."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    client_id: Required[ClientId]
    metric: Required[float]
    metric_name: str
    clients_evaluated: Count


class ClientFigures(TypedDict, total=False):
    """What clients found on what they hold back: all of them, those of a tier, or those of a mode."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    clients: Required[Count]
    examples: Required[Count]
    fp: Required[dict[str, float] | None]
    quantized: Required[dict[str, float] | None]


class TierOnClients(ClientFigures, total=False):
    """Those with one device."""

    tier: Required[str]


class ModeOnClients(ClientFigures, total=False):
    """Those that trained in one mode the last time."""

    mode: Required[str]


class OnClients(ClientFigures, total=False):
    """All of them."""

    metric_name: Required[str]
    without: Count
    tiers: Required[list[TierOnClients]]
    modes: Required[list[ModeOnClients]]


class OfViews(TypedDict, total=False):
    """Figures of one metric over clients, in each view."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    fp: Required[dict[str, float] | None]
    quantized: Required[dict[str, float] | None]


class TunedFigures(TypedDict, total=False):
    """What the models of clients did before and after they tuned them: of all clients, of a tier, or of a mode."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    clients: Required[Count]
    examples: Required[Count]
    before: Required[OfViews]
    after: Required[OfViews]


class TunedTier(TunedFigures, total=False):
    """Those with one device."""

    tier: Required[str]


class TunedMode(TunedFigures, total=False):
    """Those that tuned in one mode."""

    mode: Required[str]


class FineTuned(TunedFigures, total=False):
    """All of them, and what it cost."""

    metric_name: Required[str]
    without: Count
    virtual_seconds: Required[Seconds]
    downlink_bytes: Required[Count]
    tiers: Required[list[TunedTier]]
    modes: Required[list[TunedMode]]


class PerClass(TypedDict, total=False):
    """Accuracy on each class."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    classes: list[str]
    examples: list[Count]
    fp: list[float | None]
    quantized: list[float | None] | None


class Tier(TypedDict, total=False):
    """What the clients with one device did."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    tier: Required[str]
    clients: Required[Count]
    mode_counts: Required[dict[Mode, Count]]
    download_seconds: Required[Seconds]
    compute_seconds: Required[Seconds]
    upload_seconds: Required[Seconds]
    fits: Count
    late: Count
    idle: Count
    quarantined: Count


class Agreement(TypedDict, total=False):
    """How what a file computes agrees with the converted module."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    samples: Required[Count]
    bit_equal: Required[float]
    same_argmax: float | None
    largest_difference: Required[float]


class File(TypedDict, total=False):
    """One file of the deployed model."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    name: Required[str]
    runtime: str
    bytes: Count | None
    reason: str | None
    agreement: Agreement | None


class Form(TypedDict, total=False):
    """What one forward of one form of the model takes."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    ms: Required[Seconds]
    ms_quartiles: Required[tuple[Seconds, Seconds]]


class Forward(TypedDict, total=False):
    """What one forward takes."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    forms: dict[str, Form]
    fp32: str
    int8: str
    fp32_ms: Required[Seconds]
    int8_ms: Required[Seconds]
    fp32_ms_quartiles: tuple[Seconds, Seconds]
    int8_ms_quartiles: tuple[Seconds, Seconds]
    speedup: Required[Seconds]
    repetitions: Count


class Inference(TypedDict, total=False):
    """Size and speed of the deployed model."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    threads: Count
    fp32_bytes: Count
    int8_bytes: Count
    packed_bytes: Count
    batch_sizes: Required[dict[str, Forward]]


class Summary(TypedDict, total=False):
    """The run."""

    __pydantic_config__ = _OTHER_KEYS  # type: ignore[misc]  # pydantic's own way
    recipe: str | None
    run_dir: str | None
    failure: str | None
    rounds: Count
    best_round: Count | None
    metric_name: str | None
    metric_fp: float | None
    metric_quantized: float | None
    test_metrics: dict[str, float] | None
    scheme: str | None
    layer_schemes: dict[str, str]
    wall_seconds: Seconds
    fit_wall_seconds: Seconds
    wall_phases: dict[str, Seconds]
    virtual_seconds: Seconds
    allocator_seconds: Seconds
    uplink_bytes: Count
    downlink_bytes: Count
    mode_counts: dict[Mode, Count]
    late: Count
    idle: Count
    quarantined: Count
    privacy: SpentPrivacy | None
    worst_client: WorstClient | None
    on_clients: OnClients | None
    fine_tuning: FineTuned | None
    per_class: PerClass | None
    tiers: list[Tier] | None
    export: str | None
    export_reason: str | None
    files: list[File]
    inference: Inference | None
    seed: int | None
    device: str
    compiled_kernels: bool
    native_kernels: str | None
    versions: dict[str, str]


def read_summary(path: Path) -> dict[str, Any]:
    """Content of a `summary.json`.

    Raises:
        ConfigurationError: It cannot be read, or is damaged.
    """
    summary: Any = read_json(path, Summary, _MOST_BYTES)
    per_class = summary.get("per_class") or {}
    lengths = {len(values) for values in per_class.values() if isinstance(values, list)}
    if len(lengths) > 1:
        raise ConfigurationError(f"{path} is damaged: per_class: columns of {' and '.join(map(str, lengths))} classes")
    return dict(summary)


def monitored_on_test_data(summary: Mapping[str, Any]) -> tuple[str, float | None, float | None] | None:
    """The monitored metric on the test data: its name there, its value in fp, and that of the deployed model.

    Its name there is that of validation with `test` for `val` or `validation`, or the same one. None where nothing of
    such a name was logged on test data.

    Args:
        summary: As `summary.json` holds it.
    """
    found: Mapping[str, float] = summary.get("test_metrics") or {}
    monitor = str(summary.get("metric_name"))
    for name in (re.sub(r"(?<![a-z])val(id(ation)?)?(?![a-z])", "test", monitor), monitor):
        fp, quantized = found.get(f"fp/{name}"), found.get(f"quantized/{name}")
        if fp is not None or quantized is not None:
            return name, fp, quantized
    return None
