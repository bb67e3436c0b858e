"""Which allocators are compared: the built-in names, and those of the user's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.paths import expand
from fedhq_lightning.support.yaml_text import read_yaml

_CALLBACKS = "fedhq_lightning.callbacks"
BEST_FIXED = "best-fixed"
GRID_SLACKS = (0.0, 0.5, 2.0)
GRID_SHARES = (0.0, 0.25, 0.5)
"""Boundaries that `best-fixed` is chosen from."""
_COMMON = (
    "callbacks",
    "seed",
    "monitor",
    "monitor_mode",
    "logger",
    "default_root_dir",
    "devices",
    "num_nodes",
    "strategy",
)
"""Settings of the trainer that all contestants of a comparison share."""
_OWN_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Contestant:
    """One allocator of a comparison.

    Attributes:
        name: In tables and file names; empty for the recipe's own.
        class_path: Its class; empty for the recipe's own, which stays as it is.
        init_args: What the class is made with.
        lanes: Values of `trainer.lanes` that it changes.
        trainer: Other values of `trainer` that it changes.
        matched: What a random allocator is matched in to the reference; None for all others.
    """

    name: str
    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)
    lanes: Mapping[str, Any] = field(default_factory=dict)
    matched: Literal["total", "tier"] | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """What decides its plans, as plain values."""
        own = {"class_path": self.class_path, "init_args": dict(self.init_args), "lanes": dict(self.lanes)}
        return own | ({"trainer": dict(self.trainer)} if self.trainer else {})


def _all(mode: str, **lanes: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return f"{_CALLBACKS}.FixedAllocator", {"allocation": mode}, lanes


_BUILT_IN: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "all-fp": _all("fp"),
    "all-ptq": _all("ptq"),
    "all-qat-fake": _all("qat", qat_kernel="fake"),
    "all-qat": _all("qat"),
    "free-qat": (f"{_CALLBACKS}.FreeQatAllocator", {}, {}),
    "late-qat": (f"{_CALLBACKS}.LateQatAllocator", {}, {}),
    "short-ptq": (f"{_CALLBACKS}.HybridAllocator", {"qat_from": 1.0}, {}),
    "coarse": (f"{_CALLBACKS}.HybridAllocator", {"fine": False}, {}),
    "hybrid": (f"{_CALLBACKS}.HybridAllocator", {}, {}),
}
_MATCHED: dict[str, Literal["total", "tier"]] = {"random-total": "total", "random-tier": "tier"}
NAMES = (*_BUILT_IN, *_MATCHED, BEST_FIXED)
"""What can be named as it is; `fixed:SLACK:SHARE` and `NAME=CLASS_PATH|FILE.yaml` come on top."""


THE_RECIPES_OWN = Contestant("", "")


def contestant(text: str) -> Contestant:
    """One allocator as it is named on the command line.

    Args:
        text: A built-in name (not `best-fixed`); `fixed:SLACK:SHARE`; or `NAME=CLASS_PATH` or `NAME=FILE.yaml`, a file
            with `class_path`, `init_args`, and `trainer`, settings that this contestant changes.

    Raises:
        ConfigurationError: None of these, numbers out of range, or an unreadable file.
    """
    if text in _BUILT_IN:
        return Contestant(text, *_BUILT_IN[text])
    if text in _MATCHED:
        per = _MATCHED[text]
        return Contestant(text, f"{_CALLBACKS}.MatchedRandomAllocator", {"per": per}, matched=per)
    if text.startswith("fixed:"):
        return _fixed(text)
    if "=" in text:
        return _own(text)
    raise ConfigurationError(
        f"allocator {text!r}: known are {', '.join(NAMES)}, fixed:SLACK:SHARE, and NAME=CLASS_PATH or NAME=FILE.yaml "
        f"for one of your own{nearest(text, NAMES)}"
    )


def fixed(slack: float, share: float) -> Contestant:
    """The boundary that stays as it is."""
    boundary = {"slack": slack, "share": share}
    init_args = {"fine": False, "boundary": boundary, "qat_from": 0.0}
    return Contestant(f"fixed:{slack:g}:{share:g}", f"{_CALLBACKS}.HybridAllocator", init_args)


def grid() -> list[Contestant]:
    """All boundaries that `best-fixed` is chosen from."""
    return [fixed(slack, share) for slack in GRID_SLACKS for share in GRID_SHARES]


def check_names(names: Sequence[str]) -> None:
    """Refuse none, and the same one twice.

    Raises:
        ConfigurationError: So it is.
    """
    if not names:
        raise ConfigurationError(f"allocators: none given; name some of {', '.join(NAMES)}")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigurationError(f"allocators: {', '.join(twice)} given twice; name each once")


def reference_of(contestants: Sequence[Contestant], name: str | None) -> Contestant | None:
    """Whom the random allocators are matched to; None where there are none.

    Args:
        contestants: All that are compared.
        name: The one that is asked for; None for `hybrid`, or `coarse` where that is not among them.

    Raises:
        ConfigurationError: It is not among them, or is itself random.
    """
    if name is None and not any(each.matched for each in contestants):
        return None
    able = {each.name: each for each in contestants if each.matched is None}
    for wanted in ("hybrid", "coarse") if name is None else (name,):
        if wanted in able:
            return able[wanted]
    given = f"reference {name!r} is not" if name else "neither hybrid nor coarse is"
    raise ConfigurationError(
        f"random allocators are matched to another one, and {given} among them; compared are "
        f"{', '.join(able) or 'random ones only'}; add hybrid, or name one of these with --reference"
        f"{nearest(name or '', able)}"
    )


def _fixed(text: str) -> Contestant:
    parts = text.split(":")
    try:
        slack, share = map(float, parts[1:])
    except ValueError:
        slack = share = -2.0
    if not (-1 < slack < float("inf") and 0 <= share <= 1):
        raise ConfigurationError(
            f"allocator {text!r}: give fixed:SLACK:SHARE with a slack above -1 and a share from 0 to 1, such as "
            "fixed:0.5:0.25"
        )
    return fixed(slack, share)


def _own(text: str) -> Contestant:
    name, _, source = text.partition("=")
    if not _OWN_NAME.fullmatch(name) or name in NAMES:
        raise ConfigurationError(
            f"allocator {text!r}: {name!r} is a built-in name or no name; take letters, digits, '-', '_' and '.'"
        )
    if not source.endswith((".yaml", ".yml")):
        if not re.fullmatch(r"\w+(\.\w+)*", source):
            raise ConfigurationError(
                f"allocator {text!r}: after '=' comes the class, such as my_module.MyAllocator, or a .yaml file"
            )
        return Contestant(name, source)
    source = expand(source, f"allocator {name}")
    try:
        content = read_yaml(Path(source))
    except ConfigurationError as error:
        raise ConfigurationError(f"allocator {text!r}: {error}") from error
    allowed = {"class_path", "init_args", "trainer"}
    if not isinstance(content, dict) or "class_path" not in content or not set(content) <= allowed:
        raise ConfigurationError(
            f"allocator {text!r}: {source} must hold class_path, and may hold init_args and trainer"
        )
    trainer = content.get("trainer") or {}
    common = sorted(set(trainer) & set(_COMMON)) if isinstance(trainer, dict) else [repr(trainer)]
    if common:
        raise ConfigurationError(
            f"allocator {text!r}: {source}: trainer must hold settings that contestants may differ in, such as "
            f"ema_decay; not {', '.join(common)}"
        )
    return Contestant(name, str(content["class_path"]), content.get("init_args") or {}, trainer=trainer)
