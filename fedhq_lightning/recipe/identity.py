"""Is this the same run? The one answer for resumed runs, comparisons and studies. Imports nothing heavy.

Settings are nested mappings, as YAML holds them. What is not set counts as its default where that is known, else as
None, so that settings which the package has gained since do not make an old run another one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from fedhq_lightning.errors import ConfigurationError

TRAINER_SETTINGS_THAT_CHANGE_NO_BIT = (
    "accelerator",  # the kind of device that it names decides
    "devices",
    "num_nodes",
    "strategy",
    "process_timeout",
    "logger",
    "name",
    "default_root_dir",
    "enable_progress_bar",
    "checkpoint_every_n_rounds",
    "final_evaluation",
    "export",
    "export_inputs",
)
"""Keys of `trainer` that do not change what a run computes, nor does what is below them."""
SETTINGS_THAT_CHANGE_NO_BIT = frozenset(f"trainer.{name}" for name in TRAINER_SETTINGS_THAT_CHANGE_NO_BIT)
"""Dotted names of the keys that do not change what a run computes."""

DefaultOf: TypeAlias = Callable[[str, str | None, str], Any]
"""What an unset key counts as: of a mapping's dotted name, the class whose `init_args` it is (or None), and the key."""
_PARTS_OF_A_RUN = ("model", "data", "trainer", "device", "compiled_kernels", "native_kernels", "virtual_fleet")
_MOST_NAMED = 3
_CLASS, _ARGUMENTS = "class_path", "init_args"
_MOVED = {
    "fedhq_lightning.reporting.progress.ProgressDisplay": "fedhq_lightning.report.progress.ProgressDisplay",
    "fedhq_lightning.devices.profile.DeviceProfile": "fedhq_lightning.devices.device_profile.DeviceProfile",
}
"""Classes that a run of 0.1 may have been described with -> where they are now."""
_LANES = "trainer.lanes"
_LANES_BEFORE = {"qat_backward": "bf16"}
"""Options of `trainer.lanes` whose default has changed -> the old one, which is that of runs that do not say them."""


@dataclass(frozen=True)
class Change:
    """A setting that differs.

    Attributes:
        name: Its dotted name; items of a list by their position.
        before: Its value then.
        now: Its value now.
    """

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} was {self.before!r}, is now {self.now!r}"


def changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    free: Collection[str] = (),
    default_of: DefaultOf = lambda *_: None,
) -> list[Change]:
    """What differs between two runs' settings, in the settings' order.

    Another class counts once, whatever its arguments; so do lists of plain values of other lengths.

    Args:
        before: Settings then.
        now: Settings now.
        free: Dotted names that may differ, and whatever is below them.
        default_of: What a setting counts as that only one of them has.
    """
    return list(_changes(before, now, "", None, frozenset(free), default_of))


def in_words(found: Sequence[Change]) -> str:
    """The first three changes, and how many more there are."""
    more = f"; and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return "; ".join(map(str, found[:_MOST_NAMED])) + more


def check_same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    free: Collection[str] = SETTINGS_THAT_CHANGE_NO_BIT,
    default_of: DefaultOf = lambda *_: None,
) -> None:
    """Refuse to resume with other settings.

    Args:
        before: Description in the checkpoint.
        now: Description of this run. Beside model, data, trainer, the kind of device, whether kernels are compiled and
            what the fleet's files say nothing is compared.
        free: Dotted names that do not change what is computed, nor does what is below them.
        default_of: What a setting counts as that only one of them has.

    Raises:
        ConfigurationError: Settings differ; the first three are named.
    """
    old, new = ({part: each.get(part) for part in _PARTS_OF_A_RUN} for each in (before, now))
    if found := changes(old, new, free, default_of):
        raise ConfigurationError(
            f"resuming with another recipe: {in_words(found)}; resume with the run's own recipe, or start a new run"
        )


def without_free(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of the trainer that change no bit."""
    trainer = settings["trainer"]
    kept = {name: value for name, value in trainer.items() if name not in TRAINER_SETTINGS_THAT_CHANGE_NO_BIT}
    return {**settings, "trainer": kept}


def fingerprint(settings: Any) -> str:
    """Sixteen hexadecimal digits that are the same for the same plain values, in whatever order their keys are."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def differing(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Dotted keys whose values are not the same in all of several runs, with each run's value as text.

    As on the command line `init_args` is no part of a key, and values are written as YAML writes them; "-" is for what
    is not set.
    """
    flat = [dict(_leaves(each)) for each in settings]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = [(key, [each.get(key, "-") for each in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _changes(
    before: Any, now: Any, name: str, owner: str | None, free: frozenset[str], default_of: DefaultOf
) -> Iterator[Change]:
    if before == now or name in free or _are_one_file(before, now):
        return
    if name.rpartition(".")[2] == _ARGUMENTS:  # none are as many as those that are not set
        before, now = before or {}, now or {}
    if name == _LANES or name.endswith(f".{_LANES}"):
        before, now = ({**_LANES_BEFORE, **_without_class(each or {})} for each in (before, now))
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        made_by = now.get(_CLASS)
        then = before.get(_CLASS)
        if made_by not in (then, _MOVED.get(str(then))):
            yield Change(_below(name, _CLASS), then, made_by)
            return
        for key in dict.fromkeys([*before, *now]):
            if key == _CLASS:
                continue
            old, new = (
                each[key] if key in each else default_of(name, owner, key)  # asked for only where it is needed
                for each in (before, now)
            )
            yield from _changes(old, new, _below(name, key), made_by if key == _ARGUMENTS else None, free, default_of)
    elif isinstance(before, list) and isinstance(now, list) and _side_by_side(before, now):
        for position in range(max(len(before), len(now))):
            old, new = (each[position] if position < len(each) else None for each in (before, now))
            yield from _changes(old, new, _below(name, position), None, free, default_of)
    else:
        yield Change(name, before, now)


def _without_class(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != _CLASS}


def _are_one_file(before: Any, now: Any) -> bool:
    """Whether two texts are two ways to name one file or folder that is there, such as a relative path and a whole one.

    What a run's files hold is compared elsewhere.
    """
    if not (isinstance(before, str) and isinstance(now, str)):
        return False
    with suppress(OSError, ValueError):
        return os.path.samefile(before, now)
    return False


def _side_by_side(before: Sequence[Any], now: Sequence[Any]) -> bool:
    """Whether the items of two lists are told one by one."""
    return len(before) == len(now) or any(isinstance(item, Mapping) for item in (*before, *now))


def _below(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    items: Any = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    if node and items:
        for key, value in items:
            yield from _leaves(value, name if key == _ARGUMENTS else _below(name, key))
    elif name:
        yield name, "null" if node is None else str(node).lower() if isinstance(node, bool) else str(node)
