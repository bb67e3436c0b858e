"""A folder that Flower runs: its `pyproject.toml`, a recipe, and two modules of two lines."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.version import __version__

_PROJECT = """# A Flower app of fedhq_lightning: the recipe in {package}/{name}.yaml, its clients on nodes.
# Server and nodes need the same packages: pip install 'fedhq-lightning[flower]=={version}'
# Run:  flwr run . SUPERLINK --stream, with SUPERLINK from config.toml of Flower's home
[project]
name = "{name}"
version = "1.0.0"
description = "{name} by fedhq_lightning, its clients on nodes"
license = "Apache-2.0"
dependencies = []  # installed on server and nodes beforehand, so that Flower installs nothing

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.flwr.app]
publisher = "fedhq-lightning"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
join-seconds = 300   # that the server waits before round 1 for a node of each client
reply-seconds = 600  # that it waits in a round for what a node was asked for; who answers later is late
runs = {runs}  # folder of run directories, where the ServerApp runs
resume = ""          # run directory there to go on from, or "last"
"""
_MODULE = """from fedhq_lightning.flower import {half}_app

app = {half}_app(__file__, "{name}.yaml")
"""


def write_app(folder: Path, name: str, recipe: str, runs: Path) -> None:
    """Write the app.

    Args:
        folder: A new one, or an empty one.
        name: The recipe's.
        recipe: Its text.
        runs: Folder of run directories on the server.

    Raises:
        ConfigurationError: The folder holds something, or cannot be written; the name has no letter to begin with.
    """
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not name[:1].isalpha():
        raise ConfigurationError(f"{name!r}: a Flower app's name begins with a letter; rename the recipe's file")
    package = name.replace("-", "_") + "_app"
    files = {
        "pyproject.toml": _PROJECT.format(name=name, package=package, version=__version__, runs=_quoted(runs)),
        f"{package}/__init__.py": "",
        f"{package}/server_app.py": _MODULE.format(half="server", name=name),
        f"{package}/client_app.py": _MODULE.format(half="client", name=name),
        f"{package}/{name}.yaml": recipe,
    }
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is there already; name another folder, or remove it")
    was_there = folder.exists()
    try:
        (folder / package).mkdir(parents=True)
        for place, text in files.items():
            (folder / place).write_text(text, encoding="utf-8")
    except OSError as error:
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}; name another folder") from error


def _quoted(path: Path) -> str:
    """A string of TOML."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
