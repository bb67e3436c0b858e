"""What all cells of a comparison share, and the recipe of each of them."""

from __future__ import annotations

import copy
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
from fedhq_lightning.recipe.identity import changes, in_words, without_free
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.trainer import FederatedTrainer

FILE_NAME = "comparison.json"


def shared_settings(name: str, text: str) -> dict[str, Any]:
    """What all cells share: the resolved recipe without allocator, seeds, and what changes no bit.

    Args:
        name: Of the recipe.
        text: The resolved recipe.

    Raises:
        ConfigurationError: The recipe has no scheme.
    """
    content = without_free(yaml.safe_load(text))
    trainer = content["trainer"]
    if trainer.get("scheme") is None:
        raise ConfigurationError(
            f"recipe {name}: trainer.scheme is not set, so every allocator would train the same; give a scheme, such "
            "as --trainer.scheme=w4a8"
        )
    trainer.pop("seed", None)
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
    if found := changes(before, json.loads(json.dumps(settings)), default_of=_default):
        raise ConfigurationError(
            f"{folder} is the folder of another comparison (recipe {kept.get('recipe')}): {in_words(found)}; name "
            "another --folder, or give the same values"
        )
    return before


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


def _default(name: str, owner: str | None, key: str) -> Any:
    """The default of an argument that the package has gained since."""
    made: type | None = {"trainer": FederatedTrainer, "trainer.lanes": LaneOptions}.get(name)
    if made is None and owner is not None:
        made = _class(owner)
    parameters = inspect.signature(made).parameters if made else {}
    default = parameters[key].default if key in parameters else None
    return None if default is inspect.Parameter.empty else default
