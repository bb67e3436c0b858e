"""Packages that load a name when it is first used: what type checkers see is what is loaded."""

import ast
import importlib
from pathlib import Path

import pytest
from lightning.pytorch.strategies import StrategyRegistry

import fedhq_lightning
from fedhq_lightning import callbacks
from fedhq_lightning.support import lazy
from fedhq_lightning.support.lazy import on_first_use

ROOT = Path(fedhq_lightning.__file__).parent
LAZY = {
    ".".join(("fedhq_lightning", *file.parent.relative_to(ROOT).parts)): file
    for file in sorted(ROOT.rglob("__init__.py"))
    if "on_first_use" in file.read_text(encoding="utf-8")
}


def typed(file: Path) -> dict[str, list[str]]:
    """Module to names, as the block for type checkers imports them."""
    (block,) = (
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {str(node.module): sorted(alias.name for alias in node.names) for node in imports}


def loaded(file: Path) -> dict[str, list[str]]:
    """The same, as `on_first_use` is given them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (call,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "on_first_use"
    )
    given = call.args[1]
    if isinstance(given, ast.Name):
        assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
        (given,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == given.id)
    return {module: sorted(names) for module, names in ast.literal_eval(given).items()}


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_see_every_name(package: str) -> None:
    assert typed(LAZY[package]) == loaded(LAZY[package])
    module = importlib.import_module(package)
    names = [name for names in loaded(LAZY[package]).values() for name in names]
    assert sorted(set(module.__all__) - {"__version__"}) == sorted(names)


@pytest.mark.parametrize("package", LAZY)
def test_every_name_loads_and_is_listed(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)


@pytest.mark.parametrize("package", LAZY)
def test_no_name_is_hidden_by_a_module_of_the_same_name(package: str) -> None:
    """Importing the module would put it in the name's place."""
    assert not {file.stem for file in LAZY[package].parent.iterdir()} & set(importlib.import_module(package).__all__)


def test_no_package_has_another_way() -> None:
    """A `__getattr__` without types would hide every name from type checkers again."""
    others = [str(file) for file in ROOT.rglob("__init__.py") if "def __getattr__" in file.read_text(encoding="utf-8")]
    assert others == []


def test_any_name_of_the_callbacks_registers_the_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(lazy, "import_module", lambda name: imported.append(name) or importlib.import_module(name))
    for name in callbacks.__all__:
        imported.clear()
        vars(callbacks).pop(name, None)
        assert getattr(callbacks, name) is not None
        assert "fedhq_lightning.silos.silo_strategy" in imported, name
    assert "fedhq" in StrategyRegistry


def test_an_unknown_name_is_no_attribute() -> None:
    load, names = on_first_use("fedhq_lightning.support", {"math": ["pi"]})
    assert "pi" in names()
    with pytest.raises(AttributeError, match=r"^module 'fedhq_lightning.support' has no attribute 'tau'$"):
        load("tau")
