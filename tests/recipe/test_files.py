from pathlib import Path

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe.files import description, find, shipped

RECIPES = Path(__file__).parents[2] / "recipes"


def test_every_recipe_in_the_tree_is_shipped():
    assert {path.stem for path in RECIPES.rglob("*.y*ml")} == set(shipped())
    assert {"digits-smoke", "fashion-mnist-hybrid", "mnist5k-hybrid"} <= set(shipped())


def test_find_by_name_and_by_path(tmp_path):
    name, text = find("digits-smoke")
    assert (name, text) == ("digits-smoke", (RECIPES / "digits-smoke.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("model: 1\n")
    assert find("mine.yaml") == ("mine", "model: 1\n")
    assert find(str(tmp_path / "mine.yaml")) == ("mine", "model: 1\n")


def test_a_folder_is_no_recipe(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigurationError, match=r"^recipe file folder.yaml: Is a directory$"):
        find("folder.yaml")


def test_description():
    assert description("# name: what it does.\nmodel:\n") == "what it does."
    assert description("# what it does\n") == "what it does"
