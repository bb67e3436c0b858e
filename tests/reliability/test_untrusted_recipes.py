"""`fedhq show` of a recipe from anybody: nothing is imported, called, waited for or blown up."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhq_lightning.cli.main import main
from fedhq_lightning.launch import import_policy

RECIPE: dict[str, Any] = {
    "model": {"class_path": "fedhq_lightning.models.MLP", "init_args": {"image_size": 8}},
    "data": {
        "class_path": "fedhq_lightning.data.PartitionedDataModule",
        "init_args": {
            "datamodule": {"class_path": "fedhq_lightning.data.Digits"},
            "partitioner": {
                "class_path": "flwr_datasets.partitioner.IidPartitioner",
                "init_args": {"num_partitions": 6},
            },
        },
    },
    "trainer": {"max_rounds": 1, "scheme": "w4a8", "logger": False},
}
MODULE = "import pathlib\npathlib.Path({!r}).touch()\nimport lightning as L\nclass Net(L.LightningModule): ...\n"
EVIL = "evil_module_of_somebody.Net"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that shows that a module of somebody's was imported; it lies both here and where packages do."""
    for folder in (tmp_path, tmp_path / "site"):
        folder.mkdir(exist_ok=True)
        (folder / f"{EVIL.partition('.')[0]}.py").write_text(MODULE.format(str(tmp_path / "imported")))
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "imported"


def with_value(*keys: str, value: Any) -> dict[str, Any]:
    """The recipe with one value."""
    changed = copy.deepcopy(RECIPE)
    node = changed
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return changed


def show(recipe: Mapping[str, Any] | str | bytes, *arguments: str) -> int:
    """`fedhq show` of it, in under a second of computing."""
    text = yaml.safe_dump(recipe, sort_keys=False) if isinstance(recipe, Mapping) else recipe
    Path("a.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    began = time.process_time()
    code = main(["show", "a.yaml", *arguments])
    assert time.process_time() - began < 1
    return code


@pytest.fixture(autouse=True, scope="module")
def _resolved_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first one imports is not measured."""
    path = tmp_path_factory.mktemp("first") / "a.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    assert main(["show", str(path)]) == 0


PLACES = {
    "model": with_value("model", value={"class_path": EVIL}),
    "data": with_value("data", value={"class_path": EVIL}),
    "inside data": with_value("data", "init_args", "datamodule", value={"class_path": EVIL}),
    "as text": with_value("data", "init_args", "datamodule", value=EVIL),
    "partitioner": with_value("data", "init_args", "partitioner", "class_path", value=EVIL),
    "callbacks": with_value("trainer", "callbacks", value=[{"class_path": EVIL}]),
    "callbacks as texts": with_value("trainer", "callbacks", value=[EVIL]),
    "logger": with_value("trainer", "logger", value={"class_path": EVIL, "init_args": {"a": 1}}),
    "aggregator": with_value("trainer", "aggregator", value={"class_path": EVIL}),
}


@pytest.mark.parametrize("recipe", PLACES.values(), ids=PLACES)
def test_nothing_of_somebody_else_is_imported(marker, capsys, recipe) -> None:
    assert show(recipe, "--trainer.max_rounds=7", "--trainer.lanes.qat_backward=bf16") == 0
    printed, said = capsys.readouterr()
    reason = f"{EVIL} was not imported, so defaults are missing; --trust imports it, and so runs its code"
    assert said == f"fedhq: recipe a: {reason}\n"
    trainer = recipe["trainer"] | {"max_rounds": 7, "lanes": {"qat_backward": "bf16"}}
    assert yaml.safe_load(printed) == recipe | {"trainer": trainer}
    assert not marker.exists()
    assert EVIL.partition(".")[0] not in sys.modules


@pytest.mark.parametrize("override", ["--model", "--trainer.callbacks", "--trainer.callbacks+", "--trainer.logger"])
def test_not_by_an_override_either(marker, capsys, override) -> None:
    show(RECIPE, f"{override}={EVIL}")
    assert f"{EVIL} was not imported" in capsys.readouterr().err
    assert not marker.exists()


def test_with_trust_it_is(marker, capsys, monkeypatch) -> None:
    name = EVIL.partition(".")[0]
    try:
        assert show(PLACES["model"], "--trust") == 0
    finally:
        sys.modules.pop(name, None)
    assert marker.exists()
    assert "local_epochs" in capsys.readouterr().out, "defaults are there"


@pytest.mark.parametrize(
    ("path", "answer"),
    {
        "torch.hub.load": "torch.hub.load is not a L",
        "torch.os.system": "posix.system was not imported",
        "lightning.pytorch.trainer.trainer.os.system": "was not imported",
        "torch.utils.cpp_extension.subprocess.Popen": "subprocess.Popen was not imported",
        "fedhq_lightning.cli.__main__.Net": "was not imported",
        "torch.utils.model_dump.__main__.Net": "was not imported",
        "antigravity.Net": "was not imported",
        "jsonargparse.set_parsing_settings": "was not imported",
        "builtins.eval": "was not imported",
        "importlib.import_module": "was not imported",
    }.items(),
)
def test_nothing_is_called_through_what_is_trusted(capsys, path, answer) -> None:
    for recipe in (with_value("model", value={"class_path": path, "init_args": {"args": "touch called"}}),
                   with_value("trainer", "logger", value={"class_path": path})):  # fmt: skip
        show(recipe)
        assert answer in capsys.readouterr().err
    assert not Path("called").exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("text", [
    "module '{}' has no attribute 'Net'",
    "a\nProblem with given class_path '{}.Net':\n  - 'Option 'x''",
    "Group 'model' does not accept option 'x'\nProblem with given class_path '{}.Net':",
])  # fmt: skip
def test_error_texts_of_a_recipe_are_not_believed(marker, capsys, text) -> None:
    for place in (("trainer", "max_rounds"), ("model", "init_args", "image_size"), ("model", "class_path")):
        assert show(with_value(*place, value=text.format(EVIL.partition(".")[0]))) in (0, 2)
    assert not marker.exists()


def test_the_policy_is_over_afterwards(marker) -> None:
    with import_policy.only_trusted_imports():
        pass
    assert main(["show", "digits-smoke", "--trust"]) == 0


NESTED = "[" * 10**5
BOMB = "\n".join(["a0: &a0 [x,x,x,x,x]", *(f"a{n}: &a{n} [{','.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 12))])


@pytest.mark.parametrize(
    ("recipe", "reason"),
    {
        "bomb": (f"{BOMB}\n{yaml.safe_dump(RECIPE)}", "not readable as YAML, line 6: stands for more than"),
        "deep": (f"model: {NESTED}", "not readable as YAML, line 1: nested more than 50 deep"),
        "bomb in a text": (with_value("trainer", "max_rounds", value=BOMB), "line 6: stands for more than"),
        "deep in a text": (with_value("model", "init_args", "lr", value=NESTED), "line 1: nested more than 50 deep"),
        "number": (with_value("model", "init_args", "lr", value="1:" * 10**5 + "1"), "a number of too many digits"),
        "date": ("model: 2024-13-45", "data is missing; give it by class_path and init_args"),
        "file": (with_value("model", value="other.yaml"), "model is text, 'other.yaml'; give class_path and init_args"),
        "device": (with_value("trainer", value="/dev/zero"), "trainer is text, '/dev/zero'; give its settings"),
        "zeros": (b"model: \0", "not readable as YAML: unacceptable character #x0000"),
        "bytes": (b"model: \xff\xfe", "recipe file a.yaml: not UTF-8 text (byte 7)"),
        "tag": ("model: !!python/object/apply:os.system [id]", "tag '!!python/object/apply:os.system' is none of"),
        "large": (b"#" * 2**21, "recipe file a.yaml: is larger than 1,048,576 bytes, the most that is read here"),
    }.values(),
)
def test_blown_up(capsys, recipe, reason) -> None:
    assert show(recipe) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1


def test_what_is_no_file(capsys, tmp_path) -> None:
    os.mkfifo("pipe.yaml")
    Path("folder.yaml").mkdir()
    for path in ("/dev/zero", "pipe.yaml", "folder.yaml"):
        assert main(["show", path]) == 2
        reason = "Is a directory" if path == "folder.yaml" else "is a pipe or a device; give a file"
        assert capsys.readouterr().err == f"fedhq: recipe file {path}: {reason}\n"


def test_overrides_are_within_the_limits(capsys) -> None:
    for value in (NESTED, BOMB):
        assert show(RECIPE, f"--trainer.max_rounds={value}") == 2
        assert show(RECIPE, f"--trainer.callbacks={value}") == 2
        assert capsys.readouterr().err.count("not readable as YAML, line") == 2


def test_listing_copying_and_completing_import_nothing(marker, capsys, monkeypatch) -> None:
    from fedhq_lightning.cli import completers

    Path("evil_module_of_somebody.yaml").write_text(yaml.safe_dump(PLACES["model"]))
    before = set(sys.modules)
    assert main(["ls"]) == main(["cp", "digits-smoke"]) == 0
    assert "evil_module_of_somebody.yaml" in completers.recipes("")
    assert set(sys.modules) == before
    assert not marker.exists()
