"""Writes constraints-lowest.txt: of every dependency the lowest version that pyproject.toml allows (`make lowest`)."""

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LOWEST = re.compile(r"(?P<name>[A-Za-z0-9-]+)(\[[^]]*\])?>=(?P<version>[0-9.]+)")
_HEAD = """\
# The lowest versions that pyproject.toml allows, written from there by `make lowest`. The suite with them:
# make test-with VERSIONS=constraints-lowest.txt
# pyparsing 3.3 warns of names that matplotlib uses until its 3.10.7; users see no such warning, tests fail by one.
pyparsing<3.3
"""


def lowest_versions() -> str:
    """Content of the file: a pin for each dependency of the package and of its extras, those of developers left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: needs for name, needs in project["optional-dependencies"].items() if name not in ("dev", "docs", "test")
    }
    needs = chain(project["dependencies"], *extras.values())
    found = [match for match in map(_LOWEST.match, needs) if match is not None]
    return _HEAD + "".join(sorted({f"{match['name']}=={match['version']}\n" for match in found}))


if __name__ == "__main__":
    (ROOT / "constraints-lowest.txt").write_text(lowest_versions())
