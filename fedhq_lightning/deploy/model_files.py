"""Where a deployed model lies, and the recipe and weights that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import safetensors.torch
from safetensors import SafetensorError

from fedhq_lightning.deploy.formats import is_program, program_suffixes
from fedhq_lightning.deploy.model_folder import PACKED, PROGRAM, STATISTICS, WEIGHTS
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.views import as_deployed, users_view
from fedhq_lightning.types import StateDict

PACKED_SUFFIX = Path(PACKED).suffix
_ALLOWED = "give a run directory, its model/ folder or a file of it"


@dataclass(frozen=True)
class ModelFiles:
    """What was found where the user pointed.

    Attributes:
        program: A file that `read_program` takes, or None.
        packed: A packed model, or None; there is one of the two, or only weights.
        weights: The float32 weights beside it, or None.
        recipe: `recipe.yaml` of the run, or None for a model that lies elsewhere.
    """

    program: Path | None
    packed: Path | None
    weights: Path | None
    recipe: Path | None


def find_files(model: Path) -> ModelFiles:
    """Files of a model.

    Raises:
        ConfigurationError: There is no model.
    """
    program, packed = None, None
    if model.is_file():
        folder = model.parent
        if is_program(model):
            program = model
        elif model.suffix == PACKED_SUFFIX:
            packed = model
        else:
            raise ConfigurationError(f"{model.name} is no {program_suffixes()} or {PACKED_SUFFIX} file; {_ALLOWED}")
    elif model.is_dir():
        folder = model if not (model / "model").is_dir() else model / "model"
        program, packed = folder / PROGRAM, folder / PACKED
    else:
        raise ConfigurationError(f"no such folder or file; {_ALLOWED}")
    recipe = folder.resolve().parent / "recipe.yaml"
    paths = (program, packed, folder / WEIGHTS, recipe)
    files = ModelFiles(*(path if path is not None and path.is_file() else None for path in paths))
    if files.program is None and files.packed is None and files.weights is None:
        ended = "" if (folder / "summary.json").is_file() or folder != model else "; a run writes model/ at its end"
        raise ConfigurationError(f"no {PROGRAM}, {PACKED} or {WEIGHTS} in {folder}{ended}")
    return files


def recipe_of(files: ModelFiles, recipe: str | None) -> tuple[str, str]:
    """Name and text of the recipe that is named, or of the run's own.

    Raises:
        ConfigurationError: Neither is there, or the run was started from Python.
    """
    if recipe is not None:
        return recipe_files.find(recipe)
    if files.recipe is None:
        raise ConfigurationError("no recipe.yaml of a run beside it; name the recipe: fedhq eval MODEL RECIPE")
    text = recipe_files.read(files.recipe)
    if text.startswith(recipe_files.STARTED_FROM_PYTHON):
        raise ConfigurationError(
            "this run was started from Python; name a recipe with its model and data (fedhq eval MODEL RECIPE), or use "
            "trainer.validate and trainer.predict there"
        )
    return files.recipe.parent.parent.name, text


def read_weights(path: Path, template: L.LightningModule, recipe: str) -> StateDict:
    """Weights of a file, in both views, that are the template's by name and shape; `recipe` is what that is from.

    Raises:
        ConfigurationError: A damaged file, or another model's.
    """
    state = _read(path)
    wanted = {name: tuple(value.shape) for name, value in users_view(template.state_dict()).items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != found:
        odd = next(name for name in [*wanted, *found] if wanted.get(name) != found.get(name))
        shapes = (f"of shape {each[odd]}" if odd in each else "missing" for each in (found, wanted))
        raise ConfigurationError(
            f"{path.name} is of another model than the {type(template).__name__} of recipe {recipe}: {odd!r} is "
            f"{next(shapes)} in the file and {next(shapes)} in the recipe's; give the recipe that it was trained with"
        )
    statistics = path.with_name(STATISTICS)
    return state | as_deployed(_read(statistics)) if statistics.is_file() else state


def _read(path: Path) -> StateDict:
    try:
        state: StateDict = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path.name} cannot be read as safetensors: {first_line(error)}") from error
    return state
