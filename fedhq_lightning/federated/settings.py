"""What a run was asked for, checked and frozen. What it finds out is kept elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.deploy.formats import FORMATS
from fedhq_lightning.deploy.pixels import PIXELS
from fedhq_lightning.devices import FleetSpec
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.federated.algorithms.aggregator import Aggregator
from fedhq_lightning.federated.algorithms.fed_avg import FedAvg
from fedhq_lightning.federated.client_errors import OnClientError
from fedhq_lightning.federated.client_evaluation import ClientEvaluation, check_frequency
from fedhq_lightning.federated.client_uplink import Rounding
from fedhq_lightning.federated.fine_tuning import FineTuning
from fedhq_lightning.federated.measured_seconds import check_measured
from fedhq_lightning.federated.personal.personal_layers import PersonalLayers
from fedhq_lightning.federated.privacy.mechanisms import Privacy
from fedhq_lightning.federated.robust.rule import RobustRule
from fedhq_lightning.federated.secure.secure_aggregation import SecureAggregation
from fedhq_lightning.federated.update_checks import check_norm_ratio
from fedhq_lightning.federated.wire import Downlink, Uplink
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.quantize.scheme import MAX_BITS, MIN_BITS
from fedhq_lightning.types import MODES, FitOptions, MonitorMode

_WHOLE = (
    "max_rounds",
    "average_from",
    "threads",
    "accumulate_grad_batches",
    "local_epochs",
    "local_steps",
    "eval_every_n_rounds",
    "checkpoint_every_n_rounds",
)
_CHOICES = {
    "uplink": ("weights", "delta"),
    "downlink": ("fp32", "scheme"),
    "uplink_rounding": ("nearest", "stochastic"),
    "precision": ("32-true", "bf16-mixed"),
    "on_client_error": ("quarantine", "retry", "raise"),
}


@dataclass(frozen=True)
class RunSettings:
    """The settings of one run, as every part of it gets them; see `FederatedTrainer` for what each means.

    `aggregator` and `allocator` are the user's own objects, and carry state of their own.
    """

    max_rounds: int
    clients_per_round: int | float | None
    fit_options: FitOptions
    scheme: QuantScheme | None
    lanes: LaneOptions
    aggregator: Aggregator
    allocator: Allocator | None
    personal_layers: PersonalLayers | None
    ditto: float | None
    fine_tuning: FineTuning | None
    uplink: Uplink
    downlink: Downlink
    uplink_bits: int | None
    uplink_rounding: Rounding
    error_feedback: bool
    privacy: Privacy | None
    secure_aggregation: SecureAggregation | None
    fleet: FleetSpec
    monitor: str | None
    monitor_mode: MonitorMode | None
    precision: Literal["32-true", "bf16-mixed"]
    process_timeout: float
    threads: int
    round_lr: Literal["constant", "cosine", "linear"] | float
    mode_lr: Mapping[str, float]
    round_deadline: float | None
    measured_seconds: bool | str
    on_client_error: OnClientError
    min_clients: int
    max_norm_ratio: float | None
    robust_rule: RobustRule | None
    sit_out_rounds: int
    ema_decay: float | None
    average_from: int | None
    retake_batch_statistics: bool
    eval_every_n_rounds: int
    evaluate_clients: ClientEvaluation | bool | None
    checkpoint_every_n_rounds: int
    final_evaluation: bool
    export: tuple[str, ...]
    export_inputs: str | None
    seed: int

    @classmethod
    def of(cls, given: Mapping[str, Any], allocator: Allocator | None) -> RunSettings:
        """Settings from the trainer's arguments, with what is left out filled in.

        Args:
            given: The arguments by name; those that are not the run's own, such as `devices`, are left aside.
            allocator: The one among the callbacks, or None where every client trains in fp.

        Raises:
            ConfigurationError: A scheme that cannot be read; see `check_settings` for the rest.
        """
        epochs = 1 if given["local_steps"] is None and given["local_epochs"] is None else given["local_epochs"]
        found: dict[str, Any] = {
            "fit_options": FitOptions(
                epochs, given["local_steps"], given["gradient_clip_val"], given["accumulate_grad_batches"]
            ),
            "mode_lr": dict(given["mode_lr"] or {}),
            "export": exports_of(given["export"]),
            "scheme": None if given["scheme"] is None else QuantScheme.parse(given["scheme"]),
            "aggregator": given["aggregator"] or FedAvg(),
            "allocator": allocator,
            "personal_layers": PersonalLayers.of(given["personal_layers"]),
        }
        return cls(**{each.name: given[each.name] for each in fields(cls) if each.name not in found}, **found)


def exports_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of further files of the deployed model, each once: from one name, several, or None."""
    return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given or ()))


def check_settings(given: Mapping[str, Any]) -> None:
    """Refuse values out of range, and those that exclude each other.

    Args:
        given: The trainer's arguments by name.

    Raises:
        ConfigurationError: The first that cannot work.
    """
    for name in _WHOLE:
        _check_whole(name, given[name])
    for name in ("round_deadline", "gradient_clip_val", "process_timeout"):
        _check_positive(name, given[name])
    for name, allowed in _CHOICES.items():
        _check_choice(name, given[name], allowed)
    if given["monitor_mode"] is not None:
        _check_choice("monitor_mode", given["monitor_mode"], ("min", "max"))
    if given["local_epochs"] is not None and given["local_steps"] is not None:
        raise ConfigurationError("local_epochs and local_steps are both given; set one of them to null")
    for name in exports_of(given["export"]):
        _check_choice("export", name, tuple(FORMATS))
    if given["export_inputs"] is not None:
        _check_choice("export_inputs", given["export_inputs"], (PIXELS,))
    cohort, round_lr, decay = given["clients_per_round"], given["round_lr"], given["ema_decay"]
    if cohort is not None and not _is_number(cohort):
        raise ConfigurationError(
            f"clients_per_round {cohort!r}: must be a count, or a fraction in (0, 1], or null for every client"
        )
    if isinstance(round_lr, str):
        _check_choice("round_lr", round_lr, ("constant", "cosine", "linear"))
    else:
        _check_positive("round_lr", round_lr)
    for mode, factor in (given["mode_lr"] or {}).items():
        _check_choice("mode_lr", mode, MODES)
        _check_positive(f"mode_lr: {mode}", factor)
    check_norm_ratio(given["max_norm_ratio"])
    check_measured(given["measured_seconds"])
    ditto = given["ditto"]
    if ditto is not None and not (_is_number(ditto) and 0 <= ditto < math.inf):
        raise ConfigurationError(
            f"ditto {ditto!r}: must be 0 or more, how strongly each client's own model is held to the global one; null "
            "for no such models"
        )
    _check_uplink(given)
    check_frequency(given["evaluate_clients"], given["eval_every_n_rounds"])
    for name, least in (("min_clients", 1), ("sit_out_rounds", 0)):
        if not (_is_number(given[name]) and isinstance(given[name], int) and given[name] >= least):
            raise ConfigurationError(f"{name} {given[name]!r}: must be a whole number, {least} or more")
    if decay is not None and not (_is_number(decay) and 0 < decay < 1):
        raise ConfigurationError(f"ema_decay {decay!r}: must be between 0 and 1")
    begins = given["average_from"]
    if begins is not None and decay is not None:
        raise ConfigurationError("average_from and ema_decay are both given; one model is served: set one to null")
    if begins is not None and begins > given["max_rounds"]:
        raise ConfigurationError(f"average_from {begins}: must be a round of the run, up to {given['max_rounds']}")


def _check_uplink(given: Mapping[str, Any]) -> None:
    bits = given["uplink_bits"]
    if bits is not None and not (_is_number(bits) and isinstance(bits, int) and MIN_BITS <= bits <= MAX_BITS):
        raise ConfigurationError(
            f"uplink_bits {bits!r}: must be a whole number from {MIN_BITS} to {MAX_BITS}, or null for the scheme's bits"
        )
    if bits is None and given["scheme"] is None:
        for name, is_set in (
            ("error_feedback", given["error_feedback"]),
            ("uplink_rounding", given["uplink_rounding"] == "stochastic"),
        ):
            if is_set:
                raise ConfigurationError(
                    f"{name} is of what is rounded on its way up, and without a scheme nothing is; give a scheme, or "
                    "uplink_bits"
                )


def _is_number(value: Any) -> bool:
    """Python counts truth values among the whole numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_whole(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and isinstance(value, int) and value >= 1):
        raise ConfigurationError(f"{name} {value!r}: must be a whole number, 1 or more")


def _check_positive(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} {value!r}: must be greater than 0")


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = nearest(str(value), allowed)
        raise ConfigurationError(f"{name} {value!r}: must be one of {', '.join(allowed)}{hint}")
