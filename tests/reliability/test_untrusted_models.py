"""A `.pt2` file that was tampered with: no code of it runs, and one sentence says why."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedhq_lightning.deploy import export_program
from fedhq_lightning.deploy.model_readme import loader
from fedhq_lightning.deploy.program_file import load_program
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme, convert

from ..mutations import attacked

CODE = "__import__('pathlib').Path('pwned').touch()"
Members = Mapping[str, bytes]


class Evil:
    """Unpickled, it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (CODE,)


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """Of a sound program, by their names below its folder in the archive."""
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    layers = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    export_program(convert(layers, QuantScheme("w4a8")), (torch.randn(3, 5),), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(members: Members, folder: str = "model/") -> Path:
    with zipfile.ZipFile("model.pt2", "w") as archive:
        for name, content in members.items():
            archive.writestr(folder + name, content)
    return Path("model.pt2")


def inside(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """Every mapping that has the key."""
    if isinstance(value, dict):
        if key in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from inside(each, key)


def graph_with(key: str, value: Any) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        model = json.loads(members["models/model.json"])
        next(inside(model, key))[key] = value
        return {**members, "models/model.json": json.dumps(model).encode()}

    return change


def with_pickled_weights(members: Members) -> Members:
    config = "data/weights/model_weights_config.json"
    return {**members, config: members[config].replace(b'"use_pickle": false', b'"use_pickle": true')}


CONTEXT = '[{"__enum__": true, "fqn": "this:X", "name": "a"}]'
ENUM = [1, {"type": "builtins.dict", "context": CONTEXT, "children_spec": []}]
TAMPERED: dict[str, tuple[Callable[[Members], Members], str]] = {
    "sample inputs": (lambda found: {**found, "data/sample_inputs/model.pt": pickled()}, "a pickle of something else"),
    "old weights": (lambda found: {**found, "data/weights/model.pt": pickled()}, "member 'data/weights/model.pt'"),
    "old constants": (lambda found: {**found, "data/constants/model.pt": pickled()}, "'data/constants/model.pt'"),
    "pickled weight": (with_pickled_weights, "it has pickled tensors"),
    "object": (lambda found: {**found, "data/constants/opaque_obj_0": pickled()}, "opaque_obj_0"),
    "library": (lambda found: {**found, "data/aotinductor/model/a.so": b""}, "member 'data/aotinductor/model/a.so'"),
    "size": (graph_with("expr_str", CODE), "it has the expr_str \"__import__"),
    "guard": (graph_with("guards_code", [CODE]), "it has the guards_code \"__import__"),
    "operator": (graph_with("target", "torch.os.system"), "it has the target 'torch.os.system'"),
    "file": (graph_with("target", "torch.ops.aten.from_file.default"), "it has the target"),
    "name": (graph_with("name", f"x={CODE}"), "it has the name"),
    "argument": (graph_with("forward_arg_names", [f"x={CODE}"]), "it has the forward_arg_names"),
    "enum": (graph_with("in_spec", json.dumps(ENUM)), "it has the in_spec"),
    "trace": (graph_with("metadata", {"stack_trace": f"x\n{CODE}"}), "it has the stack_trace"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), TAMPERED.values(), ids=TAMPERED)
def test_nothing_of_it_runs(members: Members, change: Callable[[Members], Members], reason: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_program(written(change(members)))
    said = str(refused.value)
    assert said.startswith("model.pt2 is no program that this package writes: ")
    assert reason in said
    assert said.endswith("that might run code of whoever made it, so it was not loaded (--trust loads it)")
    assert "\n" not in said
    assert not Path("pwned").exists()


@pytest.mark.parametrize("kind", ["sample inputs", "size", "guard"])
def test_it_would_have_run(members: Members, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logging.raiseExceptions", False)  # torch's own warning has no place for what it says
    with pytest.raises((ConfigurationError, AssertionError)):
        load_program(written(TAMPERED[kind][0](members)), trust=True)(torch.zeros(2, 5))
    assert Path("pwned").exists()


def test_sound_ones_are_loaded(members: Members) -> None:
    program = load_program(written(members))
    assert program(torch.zeros(7, 5)).shape == (7, 3)


def test_what_stands_twice_in_the_archive_is_what_was_looked_at(members: Members) -> None:
    path = written(members)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("model/data/sample_inputs/model.pt", pickled())
    with pytest.raises(ConfigurationError, match="a pickle of something else"):
        load_program(path)
    assert not Path("pwned").exists()


def test_a_bomb_is_not_unpacked(members: Members) -> None:
    with (
        zipfile.ZipFile("model.pt2", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("model/models/model.json", "w", force_zip64=True) as member,
    ):
        for _ in range(257):
            member.write(bytes(2**20))
    with pytest.raises(ConfigurationError, match="its text would take more than 268,435,456 bytes"):
        load_program(Path("model.pt2"))


def test_the_shipped_loader_runs_its_own_model_alone(members: Members) -> None:
    path = written(members)
    Path("load_model.py").write_text(loader(path.read_bytes()))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in Path("load_model.py").read_text()
    written(TAMPERED["sample inputs"][0](members))
    done = subprocess.run(
        [sys.executable, "load_model.py"], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "model.pt2 is not the file that this load_model.py was written with: it was changed or damaged\n"
    )
    assert not Path("pwned").exists()


def test_mutations(members: Members) -> None:
    count_of_mutations(members, 25)


@pytest.mark.slow
def test_many_mutations(members: Members) -> None:
    count_of_mutations(members, 3000)


def count_of_mutations(members: Members, count: int) -> None:
    """Of the graph, and of the archive as a whole; a program that is let through is built, which takes its time."""
    sample = written(members).read_bytes()

    def read(content: bytes) -> None:
        Path("model.pt2").write_bytes(content)
        load_program(Path("model.pt2"))

    def read_graph(content: bytes) -> None:
        load_program(written({**members, "models/model.json": content}))

    tally = attacked(read, [sample], range(count), most_seconds=5) + attacked(
        read_graph, [members["models/model.json"]], range(count), most_seconds=5
    )
    assert tally["refused"] > count
    assert not Path("pwned").exists()
