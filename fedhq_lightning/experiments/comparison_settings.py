"""What all cells of a comparison share, and the recipe of each of them."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.contestants import Contestant
from fedhq_lightning.quantize import LaneOptions
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.trainer import FederatedTrainer

FILE_NAME = "comparison.json"
_FREE = (
    *("accelerator", "devices", "num_nodes", "strategy", "logger", "default_root_dir", "enable_progress_bar"),
    "checkpoint_every_n_rounds",
)
"""Settings of the trainer that change no bit."""


def shared_settings(name: str, text: str) -> dict[str, Any]:
    """What all cells share: the resolved recipe without allocator, seeds, and what changes no bit.

    Args:
        name: Of the recipe.
        text: The resolved recipe.

    Raises:
        ConfigurationError: The recipe has no scheme.
    """
    content: dict[str, Any] = yaml.safe_load(text)
    trainer = content["trainer"]
    if trainer.get("scheme") is None:
        raise ConfigurationError(
            f"recipe {name}: trainer.scheme is not set, so every allocator would train the same; give a scheme, such "
            "as --trainer.scheme=w4a8"
        )
    for key in ("seed", *_FREE):
        trainer.pop(key, None)
    trainer["callbacks"] = _without_allocators(trainer.get("callbacks"))
    for partitioner in _partitioners(content["data"]):
        partitioner["init_args"]["seed"] = None
    return content


def cell_recipe(text: str, contestant: Contestant, seed: int, root: Path, reference: Path | None) -> str:
    """The recipe of one cell.

    Args:
        text: The resolved recipe of the comparison.
        contestant: Takes the place of the recipe's allocator.
        seed: Of the run, and of the partitioners.
        root: Where its run directory is made.
        reference: The cell that a random allocator is matched to.
    """
    content: dict[str, Any] = yaml.safe_load(text)
    trainer = content["trainer"]
    init_args = copy.deepcopy(dict(contestant.init_args))
    if reference is not None:
        init_args["reference"] = str(reference.absolute())
    callbacks = _without_allocators(trainer.get("callbacks"))
    trainer["callbacks"] = [*callbacks, {"class_path": contestant.class_path, "init_args": init_args}]
    if contestant.lanes:
        lanes = dict(trainer.get("lanes") or {})
        if "qat_kernel" in contestant.lanes and lanes.get("layer_kernels"):
            # Patterns of single layers would win over the kernel that is asked for.
            lanes["layer_kernels"] = {mode: each for mode, each in lanes["layer_kernels"].items() if mode != "qat"}
        trainer["lanes"] = lanes | dict(contestant.lanes)
    # One process a cell: Lightning would start the whole command again for a second one.
    trainer |= {"seed": seed, "devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False}
    trainer["default_root_dir"] = str(root)
    for partitioner in _partitioners(content["data"]):
        partitioner["init_args"]["seed"] = seed
    return str(yaml.safe_dump(content, sort_keys=False))


def has_partitioner(settings: Mapping[str, Any]) -> bool:
    """Whether a seed also decides who holds which examples."""
    return any(True for _ in _partitioners(settings["data"]))


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
        kept = json.loads(path.read_text(encoding="utf-8"))
        before: dict[str, Any] = kept["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is damaged: {error!r}; name another --folder") from error
    changes = list(_changes(before, json.loads(json.dumps(settings)), ""))
    if changes:
        more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise ConfigurationError(
            f"{folder} is the folder of another comparison (recipe {kept.get('recipe')}): {'; '.join(changes[:3])}"
            f"{more}; name another --folder, or give the same values"
        )
    return before


def fingerprint(settings: Mapping[str, Any], contestant: Contestant, seed: int, reference: str | None) -> str:
    """Of everything that decides a cell's run, but for the package's version.

    Args:
        settings: What all cells of the folder share.
        contestant: The allocator.
        seed: Of the run.
        reference: Fingerprint of the cell that a random allocator is matched to.
    """
    text = json.dumps([settings, contestant.described(), seed, reference], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _without_allocators(callbacks: Any) -> list[Any]:
    listed = [] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks]
    return [each for each in listed if not issubclass(_class(each["class_path"]), Allocator)]


def _class(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _partitioners(node: Any) -> Iterator[dict[str, Any]]:
    """Every partitioner in the data's part of a recipe that takes a seed."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "partitioner" and isinstance(value, dict) and "seed" in (value.get("init_args") or {}):
            yield value
        else:
            yield from _partitioners(value)


def _changes(before: Any, now: Any, name: str) -> Iterator[str]:
    """Differences between two settings, in words; arguments new since, or gone, do not count at their defaults."""
    if before == now:
        return
    is_open = name in ("", "trainer", "trainer.lanes") or name.endswith("init_args")
    if not (isinstance(before, dict) and isinstance(now, dict)):
        yield f"{name} was {before!r}, is now {now!r}"
        return
    if "class_path" in before and before["class_path"] != now.get("class_path"):
        yield f"{name} was {before['class_path']}, is now {now.get('class_path')}"
        return
    for key in dict.fromkeys([*before, *now]):
        path = f"{name}.{key}" if name else key
        if key in before and key in now:
            nested = _with_class(before[key], before) if key == "init_args" else before[key]
            yield from _changes(nested, _with_class(now[key], now) if key == "init_args" else now[key], path)
        elif not is_open or key in before or now[key] != _default(name, now, key):
            yield f"{path} was {before.get(key, 'not there')!r}, is now {now.get(key, 'not there')!r}"


_OF_CLASS = "(class)"


def _with_class(init_args: Any, node: Mapping[str, Any]) -> Any:
    return {**init_args, _OF_CLASS: node["class_path"]} if isinstance(init_args, dict) else init_args


def _default(name: str, node: Mapping[str, Any], key: str) -> Any:
    if name == "trainer":
        made: type | None = FederatedTrainer
    elif name == "trainer.lanes":
        made = LaneOptions
    else:
        made = _class(node[_OF_CLASS]) if _OF_CLASS in node else None
    parameters = inspect.signature(made).parameters if made else {}
    return parameters[key].default if key in parameters else inspect.Parameter.empty
