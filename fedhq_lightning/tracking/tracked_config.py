"""The settings that trackers show with a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedhq_lightning.run.logged_rows import MONITOR, MONITOR_MODE


def tracked_config(
    described: Mapping[str, Any],
    recipe_name: str,
    monitor: str | None,
    monitor_mode: str | None,
) -> dict[str, Any]:
    """The resolved recipe, under the same keys for runs of a recipe and runs started from Python.

    Args:
        described: Settings as the trainer describes them; with the content of the recipe under `recipe`, if there is
            one.
        recipe_name: Its name, or that of the module's class.
        monitor: Monitored metric, as found; later runs that learn from this one compare it with theirs.
        monitor_mode: Its direction, likewise.

    Returns:
        `model` and `data` as `class_path` and `init_args`, `trainer`, `recipe` (the name), `monitor`, `monitor_mode`,
        and what else is described.
    """
    content = described.get("recipe")
    if isinstance(content, Mapping):
        # A recipe may hold more, such as a search space, which is no setting of this run.
        own = {name: content[name] for name in ("model", "data", "trainer") if name in content}
    else:
        own = {name: _as_recipe(described[name]) for name in ("model", "data", "trainer") if name in described}
        lanes = own.get("trainer", {}).get("lanes")
        if isinstance(lanes, dict):
            own["trainer"]["lanes"] = lanes.get("init_args", lanes)  # its class is fixed: recipes do not name it
    known = {} if monitor is None else {MONITOR: monitor, MONITOR_MODE: monitor_mode}
    return {**described, **own, "recipe": recipe_name, **known}


def _as_recipe(value: Any) -> Any:
    """Objects as `class_path` and `init_args`, where `describe` has the arguments beside `class_path`."""
    if isinstance(value, list):
        return [_as_recipe(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    items = {name: _as_recipe(item) for name, item in value.items()}
    if "class_path" not in items or "init_args" in items:
        return items
    class_path = items.pop("class_path")
    return {"class_path": class_path, "init_args": items}
