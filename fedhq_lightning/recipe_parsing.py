"""From a recipe to trainer, model and data, with jsonargparse as LightningCLI does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentParser

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.seeds import derive_seed, seed_generators
from fedhq_lightning.recipe_errors import explain
from fedhq_lightning.trainer import FederatedTrainer, Recipe


@dataclass(frozen=True)
class Resolved:
    """A recipe with every default filled in.

    Attributes:
        recipe: Its name and text, which can be run again.
    """

    recipe: Recipe
    _parser: ArgumentParser
    _values: Any

    def instantiate(self) -> tuple[FederatedTrainer, L.LightningModule, FederatedDataModule]:
        """Trainer, model and data; initial weights come from `trainer.seed`.

        Raises:
            ConfigurationError: A class refuses its arguments.
        """
        seed_generators(derive_seed(self._values.trainer.seed, "model"))
        try:
            objects = self._parser.instantiate(self._values)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"recipe {self.recipe.name}: {explain(error, [])}") from error
        objects.trainer.recipe = self.recipe
        return objects.trainer, objects.model, objects.data


def resolve(name: str, text: str, overrides: Sequence[str] = ()) -> Resolved:
    """Check a recipe and fill in defaults.

    Args:
        name: For messages and the run directory.
        text: YAML with `model`, `data` and `trainer`.
        overrides: Command-line arguments such as `--trainer.max_rounds=5`.

    Raises:
        ConfigurationError: Unknown key, wrong type, no such class.
    """
    parser = recipe_parser()
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"recipe {name}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"recipe {name}: holds {type(content).__name__}; it needs model, data and trainer")
    for part in ("model", "data"):
        if content.get(part) is None:
            raise ConfigurationError(f"recipe {name}: {part} is missing; give it by class_path and init_args")
    keys = [action.dest for action in parser._actions]
    try:
        parser.default_config_files = []
        base = parser.parse_object(content)
        values = parser.parse_args(list(overrides), namespace=base) if overrides else base
    except Exception as error:
        raise ConfigurationError(f"recipe {name}: {explain(error, keys)}") from error
    header = "".join(line + "\n" for line in text.splitlines() if line.startswith("#"))
    return Resolved(Recipe(name, header + parser.dump(values)), parser, values)


def recipe_parser() -> ArgumentParser:
    """The keys of a recipe."""
    parser = ArgumentParser(prog="fedhq run RECIPE", exit_on_error=False, allow_abbrev=False)
    parser.add_subclass_arguments(L.LightningModule, "model", required=True)
    parser.add_subclass_arguments(FederatedDataModule, "data", required=True)
    parser.add_class_arguments(FederatedTrainer, "trainer")
    return parser
