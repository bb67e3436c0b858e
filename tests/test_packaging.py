"""The package as laid out: every subpackage named, the linked folders, laziness."""

import re
import runpy
import subprocess
import sys
import tomllib
from importlib import resources
from itertools import chain
from pathlib import Path

import pytest

import fedhq_lightning

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedhq_lightning"
LINKED = ("callbacks", "recipes")


def read_pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def folder_of(package: str) -> Path:
    """Where a package's files lie, without the links, which an sdist lacks."""
    last = package.rpartition(".")[2]
    return ROOT / last if last in LINKED else ROOT.joinpath(*package.split("."))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that sees the checkout first."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"], capture_output=True, text=True
    )


def subpackages_in_tree() -> set[str]:
    """Every folder of the package with Python files in it, through the links too."""
    found = {"fedhq_lightning", *(f"fedhq_lightning.{name}" for name in LINKED)}
    linked = [(ROOT / name, f"fedhq_lightning.{name}") for name in LINKED]
    for folder, prefix in [(PACKAGE, "fedhq_lightning"), *linked]:
        for module in folder.rglob("*.py"):
            found.add(".".join([prefix, *module.relative_to(folder).parent.parts]))
    return found


def test_package_list_equals_tree():
    listed = read_pyproject()["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == subpackages_in_tree()


@pytest.mark.parametrize("name", sorted(subpackages_in_tree()))
def test_every_subpackage_has_an_init(name):
    assert (folder_of(name) / "__init__.py").is_file()


@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="an sdist drops links; the package-dir mapping serves there")
@pytest.mark.parametrize("name", LINKED)
def test_linked_folder(name):
    link = PACKAGE / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name, "the link must be relative, or clones point to another checkout"
    assert read_pyproject()["tool"]["setuptools"]["package-dir"][f"fedhq_lightning.{name}"] == name


def test_data_files_are_packaged():
    """Whatever is not Python in the package is matched by package-data, so that wheels have it."""
    package_data = read_pyproject()["tool"]["setuptools"]["package-data"]
    matched = {
        path.resolve()
        for package, patterns in package_data.items()
        for pattern in patterns
        for path in folder_of(package).glob(pattern)
    }
    present = {
        path.resolve()
        for folder in (PACKAGE, *(ROOT / name for name in LINKED))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert present == matched
    assert PACKAGE / "py.typed" in present


def test_recipes_are_resources():
    recipes = [entry.name for entry in resources.files("fedhq_lightning.recipes").iterdir()]
    assert "digits-smoke.yaml" in recipes


def test_version_is_one_and_in_the_changelog():
    pyproject = read_pyproject()
    assert "version" in pyproject["project"]["dynamic"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fedhq_lightning.version.__version__"}
    assert f"[{fedhq_lightning.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_import_is_lazy():
    """The command line answers within half a second only while the package itself loads nothing heavy."""
    heavy = {"torch", "torchao", "lightning", "wandb", "optuna", "datasets", "matplotlib", "numpy", "pandas", "sklearn"}
    result = run_python(f"import fedhq_lightning\nprint(sorted({heavy!r} & set(sys.modules)))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_plan_needs_no_torch():
    result = run_python("from fedhq_lightning import Plan\nprint(Plan.__module__, 'torch' in sys.modules)")
    assert result.stdout.split() == ["fedhq_lightning.types", "False"], result.stderr


@pytest.mark.parametrize("name", sorted(set(fedhq_lightning.__all__) - {"__version__"}))
def test_public_name_resolves(name):
    value = getattr(fedhq_lightning, name)
    assert value.__name__ == name
    assert value.__module__.startswith("fedhq_lightning.")
    assert name in dir(fedhq_lightning)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'FederatedTrainr'"):
        _ = fedhq_lightning.FederatedTrainr


def test_top_level_callbacks_is_refused():
    result = run_python("import callbacks")
    assert result.returncode != 0
    assert "ImportError: import fedhq_lightning.callbacks, not callbacks" in result.stderr


def test_constraints_pin_every_dependency_within_its_range():
    from packaging.requirements import Requirement

    project = read_pyproject()["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {}
    for line in lines:
        requirement = Requirement(line)
        [specifier] = requirement.specifier
        assert specifier.operator == "==", f"{line}: a pin is exact"
        assert "+" not in specifier.version, f"{line}: a local version exists on one machine only"
        pins[requirement.name.lower().replace("_", "-")] = specifier.version
    assert len(pins) == len(lines)
    for text in [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            assert requirement.extras < set(project["optional-dependencies"]), text
            continue
        assert requirement.specifier.contains(pins[requirement.name]), text


def test_the_lowest_versions_are_those_of_the_ranges():
    written = runpy.run_path(str(ROOT / ".ci" / "lowest_versions.py"))["lowest_versions"]()
    assert (ROOT / "constraints-lowest.txt").read_text() == written, "write it again: make lowest"
    pinned = re.findall(r"^([\w-]+)==", written, flags=re.MULTILINE)
    assert len(pinned) == len(set(pinned)), "a package has one lower bound, whatever brings it"
    assert {"torch", "matplotlib", "datasets"} < set(pinned)
