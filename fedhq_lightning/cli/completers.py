"""What Tab completes an argument to. Called by argcomplete, which filters by what was typed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.run.run_names import given_name


def shipped_recipes(**_: Any) -> list[str]:
    """Names of the shipped recipes."""
    return list(recipe_files.shipped())


def recipes(prefix: str = "", **_: Any) -> list[str]:
    """Names of shipped recipes, the user's YAML files, and folders on the way to them."""
    return [*recipe_files.shipped(), *yaml_files(prefix)]


def yaml_files(prefix: str = "") -> list[str]:
    """The user's YAML files, and folders on the way to them."""
    return list(_paths(prefix, (".yaml", ".yml")))


def allocators(**_: Any) -> list[str]:
    """What `fedhq compare --allocators` takes by name."""
    from fedhq_lightning.experiments.contestants import NAMES

    return list(NAMES)


def run_directories(prefix: str = "", **_: Any) -> list[str]:
    """Names of runs and run directories below `runs/`, the latest first; elsewhere folders."""
    return _runs(prefix) or list(_paths(prefix, ()))


def clients_with_models(parsed_args: Any = None, **_: Any) -> list[str]:
    """Folders of earlier exports of a run's clients: which others have a model only its data tell."""
    run = getattr(parsed_args, "run_dir", None)
    return [] if run is None else sorted(each.name for each in (Path(run) / "clients").glob("*/"))


def formats(**_: Any) -> list[str]:
    """Files of a deployed model beside `model.pt2`."""
    from fedhq_lightning.deploy.formats import FORMATS

    return list(FORMATS)


def models(prefix: str = "", **_: Any) -> list[str]:
    """Run directories; elsewhere .pt2 files."""
    runs = _runs(prefix)
    return runs if runs and prefix else [*runs, *_paths(prefix, (".pt2",))]


def _runs(prefix: str) -> list[str]:
    found = [file.parent for file in Path("runs").glob("*/*/recipe.yaml")]
    runs = sorted(found, key=lambda run: run.name, reverse=True)
    names = [*filter(None, map(given_name, runs)), *map(str, runs)]
    return [name for name in names if name.startswith(prefix)]


def _paths(prefix: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    folder = prefix.rpartition("/")[0] + "/" if "/" in prefix else ""
    try:
        entries = sorted(Path(folder or ".").iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield f"{folder}{entry.name}/"
        elif entry.suffix in suffixes:
            yield f"{folder}{entry.name}"
