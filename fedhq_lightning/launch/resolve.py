"""From a recipe to trainer, model and data, with jsonargparse as LightningCLI does it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.devices import Fleet
from fedhq_lightning.devices.fleet import is_fleet_file
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.settings import check_settings
from fedhq_lightning.launch.class_names import override_with_full_names, with_full_names
from fedhq_lightning.launch.expanded import FLEETS, RUNS, expanded
from fedhq_lightning.launch.other_class import other_classes, without_left
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.recipe.errors import check_all_used, check_class_nodes, explain
from fedhq_lightning.recipe.keys import dotted_keys, locate, with_overrides, with_values
from fedhq_lightning.run.description import Recipe
from fedhq_lightning.support.lightnings import AnyModule
from fedhq_lightning.support.seeds import derive_seed, seed_generators
from fedhq_lightning.support.yaml_text import check_texts, parse_yaml
from fedhq_lightning.trainer import FederatedTrainer

_INTO_LIST = re.compile(r"--(trainer\.callbacks\.(?:\d+|[A-Z]\w*)\.[^=]+)=(.*)", re.DOTALL)
"""jsonargparse reaches into a list only where one entry alone has the argument."""
_FOLDERS = ("root", "cache_dir")
"""Arguments of the shipped data modules that name a folder."""


@dataclass(frozen=True)
class Resolved:
    """A recipe with every default filled in.

    Attributes:
        recipe: Its name and text, which can be run again.
    """

    recipe: Recipe
    _parser: ArgumentParser
    _values: Namespace

    def instantiate(self) -> tuple[FederatedTrainer, L.LightningModule, FederatedDataModule]:
        """Trainer, model and data; initial weights come from `trainer.seed`.

        Raises:
            ConfigurationError: A class refuses its arguments.
        """
        seed_generators(derive_seed(self._values.trainer.seed, "model"))
        failures: list[Exception] = []

        def make(class_type: type, *args: Any, **kwargs: Any) -> Any:
            try:
                return _instantiate(class_type, *args, **kwargs)
            except Exception as error:
                failures.append(error)
                raise

        try:
            objects = self._parser.instantiate(self._values, instantiators=[(make, object, True)])
        except Exception as error:
            # jsonargparse may have made one of its own of it, about types, without the traceback.
            failure = failures[0] if failures else error
        else:
            objects.trainer.recipe = self.recipe
            return objects.trainer, objects.model, objects.data
        raise failure

    def check_trainer(self) -> None:
        """Refuse what the trainer refuses by its values alone, without making it, or by its fleet once a run begins.

        Raises:
            ConfigurationError: A value out of range; no such scheme; no such device or fleet file, or one with errors.
        """
        values = self._values.trainer
        with self.keys_named():
            check_settings(vars(values))
            if isinstance(values.scheme, Namespace):
                QuantScheme(**vars(values.scheme))
            elif values.scheme is not None:
                QuantScheme.parse(values.scheme)
            Fleet.resolve(values.fleet, values.seed)

    @contextmanager
    def keys_named(self) -> Iterator[None]:
        """Give errors the recipe's dotted key: `scheme 'w9a8': ...` becomes `trainer.scheme 'w9a8': ...`."""
        try:
            yield
        except ConfigurationError as error:
            raise ConfigurationError(self._with_key(str(error))) from error

    def _with_key(self, message: str) -> str:
        """The message itself where it does not begin with a key's last part, or several keys end so."""
        word = message.partition(" ")[0].rstrip(":")
        keys = [key for key in dotted_keys(self._values.as_dict()) if key.rpartition(".")[2] == word]
        return keys[0] + message.removeprefix(word) if len(keys) == 1 else message


def resolve(name: str, text: str, overrides: Sequence[str] = ()) -> Resolved:
    """Check a recipe and fill in defaults.

    Args:
        name: For the run directory.
        text: YAML with `model`, `data` and `trainer`; `tune`, which is `fedhq tune`'s, is left out.
        overrides: Command-line arguments such as `--trainer.max_rounds=5`.

    Raises:
        ConfigurationError: Unreadable, an unknown key, a wrong type, no such class.
    """
    parser = recipe_parser()
    content = with_full_names(_read(text))
    overrides = [override_with_full_names(each) for each in overrides]
    content.pop("tune", None)
    keys = [action.dest for action in parser._actions if action.dest.rpartition(".")[2] != "help"]
    check_class_nodes(content)
    check_texts([content, *(override.partition("=")[2] for override in overrides)])
    try:
        base = parser.parse_object(content)
        own, rest = _split(overrides)
        if own:
            resolved = base.as_dict()
            placed = {locate(resolved, key): parse_yaml(value) for key, value in own}
            base = parser.parse_object(with_values(resolved, placed))
        values = _with_flags(parser, content, base, rest) if rest else base
    except ConfigurationError:
        raise
    # jsonargparse lets whatever a class's import raises through as an error of its own.
    except Exception as error:
        raise ConfigurationError(explain(error, keys)) from error
    check_all_used(content, base.as_dict())
    values = expanded(values)
    if values.trainer.lanes is None:
        values.trainer.lanes = Namespace(asdict(LaneOptions()))  # type: ignore[no-untyped-call]  # untyped in jsonargparse
    return Resolved(Recipe(name, _header(text) + parser.dump(_rooted(values), skip_unset=False)), parser, values)


def _with_flags(parser: ArgumentParser, content: Mapping[str, Any], base: Namespace, flags: list[str]) -> Namespace:
    """The recipe with flags; where they put another class, with the arguments of the old one that it has a use for."""
    values: Namespace = parser.parse_args(flags, namespace=base.clone())
    others = other_classes(content, base.as_dict(), values.as_dict(), flags)
    if not others:
        return values
    found: Namespace = parser.parse_object(without_left(values.as_dict(), others))
    for other in others:
        if told := other.told(content, values.as_dict(), found.as_dict()):
            rank_zero_warn(told)
    return found


def as_written(text: str, overrides: Sequence[str] = ()) -> str:
    """A recipe with overrides put into it, and nothing else: no class looked up, no default filled in.

    Args:
        text: As `resolve` takes it.
        overrides: `--KEY=VALUE`.

    Raises:
        ConfigurationError: Unreadable, or an override that cannot be put in.
    """
    content = with_overrides(_read(text), overrides)
    content.pop("tune", None)
    return _header(text) + str(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


def _header(text: str) -> str:
    """The comment that a recipe begins with."""
    return "".join(line + "\n" for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))


def _split(overrides: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Overrides that name an entry of a list by its class or position, as (key, value), and the others."""
    matches = [_INTO_LIST.fullmatch(override) for override in overrides]
    own = [(match[1], match[2]) for match in matches if match]
    return own, [override for override, match in zip(overrides, matches, strict=True) if not match]


def recipe_parser() -> ArgumentParser:
    """The keys of a recipe."""
    parser = ArgumentParser(prog="fedhq run RECIPE", exit_on_error=False, allow_abbrev=False, default_env=False)
    parser.add_subclass_arguments(AnyModule, "model", required=True)
    parser.add_subclass_arguments(FederatedDataModule, "data", required=True)
    parser.add_class_arguments(FederatedTrainer, "trainer")
    return parser


def _rooted(values: Namespace) -> Namespace:
    """The values, with relative paths to what is there made whole: a run may go on from another folder."""
    rooted = values.clone()
    for key, value in values.items():
        name = key.rpartition(".")[2]
        if key in FLEETS:
            rooted[key] = _rooted_fleet(value)
        elif key in RUNS:
            rooted[key] = _rooted_runs(value)
        elif isinstance(value, list):
            rooted[key] = [_rooted(each) if isinstance(each, Namespace) else each for each in value]
        elif name in _FOLDERS and isinstance(value, str | Path) and Path(value).is_dir():
            rooted[key] = os.path.abspath(value)
    return rooted


def _rooted_fleet(value: Any) -> Any:
    if isinstance(value, list):
        return [_rooted_fleet(each) for each in value]
    if isinstance(value, Mapping):
        return {_rooted_fleet(device): weight for device, weight in value.items()}
    is_file = isinstance(value, str | Path) and is_fleet_file(value) and Path(value).is_file()
    return os.path.abspath(value) if is_file else value


def _rooted_runs(value: Any) -> Any:
    if isinstance(value, list):
        return [_rooted_runs(each) for each in value]
    return os.path.abspath(value) if isinstance(value, str | Path) and Path(value).exists() else value


def _read(text: str) -> dict[str, Any]:
    content = parse_yaml(text)
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigurationError(f"holds {found}; a recipe has the keys model, data and trainer")
    for part in ("model", "data"):
        if content.get(part) is None:
            raise ConfigurationError(f"{part} is missing; give it by class_path and init_args")
    for part in ("model", "data", "trainer"):
        # A text would be taken for the name of a file with the rest of the recipe.
        given = content.get(part, {})
        if given is None or isinstance(given, str):
            how = "its settings, one a line" if part == "trainer" else "class_path and init_args"
            raise ConfigurationError(f"{part} is {'null' if given is None else f'text, {given!r}'}; give {how}")
    return content


def _instantiate(class_type: type, *args: Any, **kwargs: Any) -> Any:
    """Make one object of a recipe; values that its class refuses are the user's to mend, as in our own classes."""
    try:
        return class_type(*args, **kwargs)
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(
            f"{class_type.__name__}: {str(error) or 'ValueError'} (--debug shows where)"
        ) from error
    except ModuleNotFoundError as error:  # Lightning's loggers say so of packages that only they need
        needed = str(error).partition("\n")[0].rstrip(".")
        raise ConfigurationError(f"{class_type.__name__} needs a package that is not installed: {needed}") from error
