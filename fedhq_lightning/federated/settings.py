"""Whether the trainer's settings can work, as far as they tell by themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.support.collectives import lightning_quiet

_WHOLE = (
    "max_rounds",
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
    "precision": ("32-true", "bf16-mixed"),
}


def check_settings(given: Mapping[str, Any]) -> None:
    """Refuse values out of range, and those that exclude each other.

    Args:
        given: The trainer's arguments by name.

    Raises:
        ConfigurationError: The first that cannot work.
    """
    for name in _WHOLE:
        _check_whole(name, given[name])
    for name in ("round_deadline", "gradient_clip_val"):
        _check_positive(name, given[name])
    for name, allowed in _CHOICES.items():
        _check_choice(name, given[name], allowed)
    if given["monitor_mode"] is not None:
        _check_choice("monitor_mode", given["monitor_mode"], ("min", "max"))
    if given["local_epochs"] is not None and given["local_steps"] is not None:
        raise ConfigurationError("local_epochs and local_steps are both given; set one of them to null")
    cohort, round_lr, decay = given["clients_per_round"], given["round_lr"], given["ema_decay"]
    if cohort is not None and not _is_number(cohort):
        raise ConfigurationError(
            f"clients_per_round {cohort!r}: must be a count, or a fraction in (0, 1], or null for every client"
        )
    if isinstance(round_lr, str):
        _check_choice("round_lr", round_lr, ("constant", "cosine", "linear"))
    else:
        _check_positive("round_lr", round_lr)
    if decay is not None and not (_is_number(decay) and 0 < decay < 1):
        raise ConfigurationError(f"ema_decay {decay!r}: must be between 0 and 1")


def make_fabric(
    accelerator: str, devices: int | str | list[int], num_nodes: int, strategy: str, precision: Any
) -> Fabric:
    """Fabric on hardware that is there.

    Raises:
        ConfigurationError: Values that Fabric does not know, hardware that is not there, or a strategy that starts its
            processes in another way than by running the script again: Fabric would return from the first of them.
    """
    given = f"accelerator {accelerator!r}, devices {devices!r}, strategy {strategy!r}"
    try:
        with lightning_quiet():
            fabric = Fabric(
                accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, precision=precision
            )
    # Fabric's own words for what it refuses.
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(f"{given}: {error}") from error
    launcher = fabric.strategy.launcher
    if launcher is not None and not isinstance(launcher, _SubprocessScriptLauncher):
        method = getattr(launcher, "_start_method", "a function")
        raise ConfigurationError(
            f"strategy {strategy!r} starts processes by {method}, which cannot work here; take 'auto' or 'ddp', which "
            "run the script once a process (in a notebook: devices=1)"
        )
    return fabric


def split_callbacks(
    callbacks: Sequence[RoundCallback | Allocator] | RoundCallback | Allocator | None,
) -> tuple[list[RoundCallback], Allocator | None]:
    """Round callbacks, and the allocator if there is one.

    Raises:
        ConfigurationError: Several allocators, something that is neither, or two callbacks of one name.
    """
    given = [callbacks] if isinstance(callbacks, RoundCallback | Allocator) else list(callbacks or [])
    allocators = [each for each in given if isinstance(each, Allocator)]
    if len(allocators) > 1:
        names = ", ".join(type(each).__name__ for each in allocators)
        raise ConfigurationError(f"callbacks hold {len(allocators)} allocators ({names}); give one at most")
    for each in given:
        if not isinstance(each, RoundCallback | Allocator):
            raise ConfigurationError(
                f"callbacks: {type(each).__name__} is neither a RoundCallback nor an Allocator; Lightning's own "
                "callbacks belong to lightning.Trainer"
            )
    rest = [each for each in given if isinstance(each, RoundCallback)]
    keys = [each.state_key for each in rest]
    if len(set(keys)) != len(keys):
        raise ConfigurationError(f"callbacks: two share the state_key {max(keys, key=keys.count)!r}; give each its own")
    return rest, allocators[0] if allocators else None


def _is_number(value: Any) -> bool:
    """Python counts truth values among the whole numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_whole(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and isinstance(value, int) and value >= 1):
        raise ConfigurationError(f"{name} {value!r}: must be a whole number, 1 or more")


def _check_positive(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} {value!r}: must be greater than 0")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} {value!r}: must be one of {', '.join(allowed)}{nearest(value, allowed)}")
