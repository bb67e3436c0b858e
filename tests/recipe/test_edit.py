"""Kernels go into a recipe's text, and everything else in it stays."""

import pytest
import yaml

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.recipe.edit import block, with_layer_kernels

KERNELS = {"ptq": {"layers.1": "fp"}, "qat": {"0": "fake", "[*]": "int8"}}
OLD = "    layer_kernels:\n      qat: {a: fake} # old\n"

# text, and the lines that must stay
TEXTS = {
    "no lanes": ("trainer:\n  seed: 0 # why\n", 2),
    "no lanes, comments after": ("trainer:\n  seed: 0\n\n# the end\n", 4),
    "no lanes, other part after": ("trainer:\n    seed: 0\n# about the model\nmodel:\n    a: 1\n", 5),
    "no line end": ("trainer:\n  seed: 0", 2),
    "nothing after the last key": ("trainer:\n  seed:\n", 2),
    "block scalar last": ("trainer:\n  note: |\n    many\n    words\nmodel: {}\n", 5),
    "text over lines last": ("trainer:\n  note: many\n    words\n", 3),
    "list last": ("trainer:\n  callbacks:\n  - class_path: x\n    init_args: {a: 1} # half\n", 4),
    "lanes with others": ("trainer:\n  lanes: # how\n    qat_kernel: int8 # own\n  seed: 1\n", 4),
    "null as fedhq show has it": ("trainer:\n  lanes:\n    layer_kernels: null\n    qat_kernel: auto\n  seed: 1\n", 4),
    "lanes null": ("trainer:\n  lanes: null\n  seed: 1 # x\n", 2),
    "lanes in braces": ("trainer:\n  lanes: {qat_kernel: int8}\n  seed: 1 # x\n", 2),
    "an earlier choice": (f"trainer:\n  lanes:\n{OLD}    qat_kernel: int8\n  seed: 1\n", 4),
    "no trainer": ("model: 1 # it\n", 1),
    "trainer null": ("trainer:\nmodel: 1\n", 1),
    "Windows": ("trainer:\r\n  seed: 0 # why\r\n", 2),
    "anchors": ("a: &a {b: 1}\ntrainer:\n  <<: *a\n  fleet: x\n", 4),
}


@pytest.mark.parametrize(("text", "kept"), TEXTS.values(), ids=TEXTS)
def test_everything_else_stays(text, kept):
    edited = with_layer_kernels(text, KERNELS)
    wanted = yaml.safe_load(text)
    trainer = wanted["trainer"] = wanted.get("trainer") or {}
    trainer["lanes"] = (trainer.get("lanes") or {}) | {"layer_kernels": KERNELS}
    assert yaml.safe_load(edited) == wanted
    lines = edited.splitlines()
    assert sum(line in lines for line in text.splitlines()) >= kept
    assert ("\r\n" in text) == ("\r\n" in edited)
    assert edited.count("\n") == edited.count("\r\n") or "\r" not in edited
    assert with_layer_kernels(edited, KERNELS) == edited
    emptied = yaml.safe_load(with_layer_kernels(edited, {}))
    assert emptied["trainer"]["lanes"]["layer_kernels"] is None


@pytest.mark.parametrize("name", recipe_files.shipped())
def test_shipped_recipes_keep_every_line(name):
    text = recipe_files.find(name)[1]
    edited = with_layer_kernels(text, KERNELS)
    rest = iter(edited.splitlines())
    assert all(line in rest for line in text.splitlines()), "a line is gone, or out of order"
    assert yaml.safe_load(edited)["trainer"]["lanes"] == {"layer_kernels": KERNELS}


@pytest.mark.parametrize("text", ["trainer:\n  seed: 0\n", "trainer:\n  lanes:\n    layer_kernels: null\n"])
def test_nothing_to_write(text):
    assert with_layer_kernels(text, {}) == text


REFUSED = {
    "root in braces": "{trainer: {seed: 0}}\n",
    "trainer in braces": "trainer: {seed: 0} # in braces\n",
    "an anchor that others use": "trainer:\n  lanes:\n    layer_kernels: &k {ptq: {a: fp}}\n  other: *k\n",
    "an alias, which would change its source too": "base: &b\n  seed: 0\ntrainer: *b\n",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_refused(text):
    with pytest.raises(ConfigurationError, match="cannot be changed safely"):
        with_layer_kernels(text, KERNELS)


def test_block_can_be_pasted():
    assert yaml.safe_load(block(KERNELS)) == {"trainer": {"lanes": {"layer_kernels": KERNELS}}}
