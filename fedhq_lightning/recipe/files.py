"""Where recipes are: shipped with the package, files of the user's, or in runs. Imports nothing heavy."""

from __future__ import annotations

import re
import shlex
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.support.untrusted_files import MOST_TEXT_BYTES, read_text

STARTED_FROM_PYTHON = "# Started from Python"
"""How `recipe.yaml` begins in a run that no recipe describes."""
_RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}(-.+)?")
"""Name of a run's directory: when it began, and what tells it from others of that second."""


def shipped() -> dict[str, Traversable]:
    """Name to file of every shipped recipe, by name."""
    files = resources.files("fedhq_lightning.recipes").iterdir()
    return {file.name.removesuffix(".yaml"): file for file in sorted(files, key=str) if file.name.endswith(".yaml")}


def find(name_or_file: str) -> tuple[str, str]:
    """Name and text of a recipe.

    Args:
        name_or_file: A shipped recipe's name, or a path (with `.yaml`, `.yml` or a slash).

    Raises:
        ConfigurationError: Neither, or the file is not readable as YAML.
    """
    path = path_of(name_or_file)
    if path is not None:
        text = read(path)
        _check(path.stem, text)
        return path.stem, text
    recipes = shipped()
    if name_or_file not in recipes:
        raise ConfigurationError(
            f"unknown recipe {name_or_file!r}: shipped are {', '.join(recipes)}; a file of your own ends in .yaml"
            f"{nearest(name_or_file, recipes)}"
        )
    return name_or_file, recipes[name_or_file].read_text(encoding="utf-8")


def _check(name: str, text: str) -> None:
    """Refuse what is no YAML, or blown up, before anybody has waited for torch."""
    from fedhq_lightning.support.yaml_text import parse_yaml

    try:
        parse_yaml(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"recipe {name}: {error}") from error


def read(path: Path) -> str:
    """Text of a recipe file.

    Raises:
        ConfigurationError: It cannot be read, or is no text.
    """
    try:
        return read_text(path, MOST_TEXT_BYTES)
    except ConfigurationError as error:
        raise ConfigurationError(f"recipe file {error}") from error


def path_of(name_or_file: str) -> Path | None:
    """The path that is meant, whether or not it is there; None for a shipped recipe's name."""
    path = expand_path(name_or_file, "recipe")
    return path if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 else None


def run_of(path: Path) -> Path:
    """The run directory that is meant by itself, by its folder of checkpoints, or by one of these."""
    folder = path.parent if path.suffix == ".ckpt" else path
    if folder.name in ("", ".."):
        folder = folder.resolve()
    return folder.parent if path.suffix == ".ckpt" or folder.name == "checkpoints" else path


def why_no_run(path: Path) -> str:
    """What a path is that should be a run's directory and has no recipe, and what to do."""
    if not path.is_dir():
        return "no such folder; give the directory of a run, such as runs/RECIPE/RUN, or its name (fedhq runs)"
    if _RUN_NAME.fullmatch(path.name) and not any(each.is_file() and each.name[0] != "." for each in path.rglob("*")):
        return f"it was stopped before it had begun; remove it: rm -r {shlex.quote(str(path))}"
    return "no recipe.yaml there; give the directory of a run, such as runs/RECIPE/RUN"


def description(text: str) -> str:
    """What a recipe does: its first comment line, without the name."""
    first = text.partition("\n")[0].lstrip("# ").strip()
    return first.partition(": ")[2] or first
