"""Every recipe in the tree: says what it is, and can be parsed, instantiated and shown again."""

import re
from pathlib import Path

import lightning as L
import pytest
import yaml

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe.files import description
from fedhq_lightning.trainer import FederatedTrainer

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.y*ml"))
assert RECIPES, "no recipe found"


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request):
    return request.param


def test_opens_with_what_it_does_what_it_needs_and_how_to_run_it(recipe):
    text = recipe.read_text()
    lines = text.splitlines()
    assert lines[0].startswith(f"# {recipe.stem}: ")
    assert 20 < len(description(text)) < 120
    assert any(re.match(r"# Needs: +\w", line) for line in lines)
    assert f"# Run:      fedhq run {recipe.stem}" in lines
    assert [key for key in yaml.safe_load(text) if key != "tune"] == ["model", "data", "trainer"]


def test_instantiates(recipe):
    trainer, model, data = resolve(recipe.stem, recipe.read_text()).instantiate()
    assert isinstance(trainer, FederatedTrainer)
    assert isinstance(model, L.LightningModule)
    assert isinstance(data, FederatedDataModule)


def test_what_is_shown_can_be_run(recipe):
    shown = resolve(recipe.stem, recipe.read_text()).recipe.text
    assert resolve(recipe.stem, shown).recipe.text == shown
    assert shown.splitlines()[0] == recipe.read_text().splitlines()[0]
