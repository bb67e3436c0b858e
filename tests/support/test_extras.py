"""Each module that is installed on request is brought by the extra that messages name."""

import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.extras import EXTRAS, check_installed, install_command, is_installed

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def _names(requirements: list[str]) -> set[str]:
    return {Requirement(each).name.replace("_", "-").lower() for each in requirements}


@pytest.mark.parametrize("module", sorted(EXTRAS))
def test_the_extra_brings_the_module(module: str) -> None:
    project = tomllib.loads(_PYPROJECT.read_text())["project"]
    if not is_installed(module):
        pytest.skip(f"{module} is not installed")
    brought = {name.replace("_", "-").lower() for name in packages_distributions()[module]}
    assert brought & _names(project["optional-dependencies"][EXTRAS[module]])
    assert not brought & _names(project["dependencies"]), "the base has it"


def test_what_is_missing_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed("this", "scipy", "matplotlib", "datasets")
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert not is_installed("scipy")
    with pytest.raises(ConfigurationError) as told:
        check_installed("this", "scipy", "matplotlib", "datasets")
    assert str(told.value) == "this takes scipy and datasets: pip install 'fedhq-lightning[data,report]'"
    assert install_command("matplotlib") == "pip install 'fedhq-lightning[report]'"
