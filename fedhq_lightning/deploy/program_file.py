"""Exported programs that anybody may have written: looked through before torch reads them, which may run code.

A `.pt2` file is a zip archive. `torch.export.load` unpickles some of its members, evaluates its size expressions and
guards as Python, imports what its argument trees name, makes Python code of its graph, and calls whatever below `torch`
the graph names. What this package writes needs none of that beyond ATen's operators, and nothing else is let through.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.untrusted_files import opened

_MOST_TEXT_BYTES = 2**28
"""Of all that is not stored as it is: of the graph, which for a ViT is 2 MB. Weights take what the file has."""
_MOST_SAMPLE_BYTES = 2**24
"""Of the sample inputs, two zeros each."""

FACTS = "facts.json"
"""Texts by their names, which torch hands out as they are."""
_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_MARKS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")

_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_BETWEEN_SIZES = re.compile(r"_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge)|torch\.sym_\w+")
_READS_FILES = ("from_file",)
_FUNCTIONS = (
    *("Symbol", "Integer", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv"),
    *("Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan"),
    *("Eq", "Ne", "Le", "Lt", "Ge", "Gt", "And", "Or", "Not", "true", "false"),
)
_SYNTAX = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.UnaryOp, ast.USub)
_TREES = ("builtins.tuple", "builtins.list", "builtins.dict", None)


def load_program(file: Path, trust: bool = False) -> nn.Module:
    """Read an exported program with nothing in it but tensors and ATen's operators.

    Args:
        file: A `.pt2` file.
        trust: Read it whatever is in it, and run that.

    Raises:
        ConfigurationError: There is something else in it, which is not run; or it is damaged, or of another torch.
    """
    checked = file if trust else _checked(file)
    try:
        return Program(checked)
    except Exception as error:  # a damaged archive fails in any of a dozen ways
        raise ConfigurationError(
            f"{file.name} is damaged, or written by another torch than {torch.__version__}: {first_line(error)}"
        ) from error


class Program(nn.Module):
    """A program.

    Args:
        archive: Of `torch.export`, and trusted.

    Attributes:
        program: As torch reads it.
        facts: What the file tells of its model, by name.
    """

    def __init__(self, archive: Path | io.BytesIO) -> None:
        super().__init__()
        extra = {FACTS: ""}
        self.program: nn.Module = torch.export.load(archive, extra_files=extra).module()
        self.facts: dict[str, str] = json.loads(extra[FACTS] or "{}")

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Outputs of one forward call, nested as the model's own."""
        with exact_convolutions():
            return self.program(*args, **keywords)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Without NNPACK, in which torch convolves 16 samples and more where it has no oneDNN: its transforms round."""
    with torch.backends.nnpack.flags(enabled=False):
        yield


def _checked(file: Path) -> io.BytesIO:
    """The archive, written anew with what was looked at: other readers may find other members in the same file."""
    anew = io.BytesIO()
    try:
        with opened(file) as stream, zipfile.ZipFile(stream) as archive, zipfile.ZipFile(anew, "w") as written:
            left = _MOST_TEXT_BYTES
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    left -= entry.file_size
                if left < 0:
                    raise _RefusedError(f"its text would take more than {_MOST_TEXT_BYTES:,} bytes")
                content = archive.read(entry)
                _check_member(entry.filename.partition("/")[2], content)
                written.writestr(entry.filename, content)
    except _RefusedError as error:
        raise ConfigurationError(
            f"{file.name} is no program that this package writes: {error}; that might run "
            "code of whoever made it, so it was not loaded (--trust loads it)"
        ) from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{file.name} is damaged: {first_line(error)}") from error
    anew.seek(0)
    return anew


class _RefusedError(Exception):
    """What is in the file that does not belong there."""


def _check_member(name: str, content: bytes) -> None:
    if name == _MODEL or name in _CONFIGS:
        _check(json.loads(content), "")
    elif name == _SAMPLES:
        _check_samples(content)
    elif not _TENSOR.fullmatch(name) and name not in (*_MARKS, f"extra/{FACTS}"):
        raise _RefusedError(f"it has a member {name!r}")


def _check_samples(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MOST_SAMPLE_BYTES:
            raise _RefusedError(f"its sample inputs would take more than {_MOST_SAMPLE_BYTES:,} bytes")
    try:
        is_plain = isinstance(torch.load(io.BytesIO(content), weights_only=True), tuple | dict)
    except Exception:  # whatever torch says of a pickle that it would have to run
        is_plain = False
    if not is_plain:
        raise _RefusedError("its sample inputs are a pickle of something else than tensors")


def _check(value: Any, key: str) -> None:
    """Every text, by the key that it is under."""
    if isinstance(value, dict):
        for name, each in value.items():
            if not _is_name(name):
                raise _RefusedError(f"it has the key {name[:60]!r}")
            _check(each, name)
    elif isinstance(value, list):
        for each in value:
            _check(each, key)
    elif isinstance(value, str) and not _RULES.get(key, _is_name)(value):
        raise _RefusedError(f"it has the {key} {value[:60]!r}")
    elif key == "use_pickle" and value is not False:
        raise _RefusedError("it has pickled tensors")


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w.]*", text) is not None


def _is_operator(target: str) -> bool:
    """Whether it is one of ATen's, or arithmetic on sizes."""
    if match := _OPERATOR.fullmatch(target):
        packet = getattr(torch.ops.aten, match[1], None)
        return match[1] not in _READS_FILES and isinstance(getattr(packet, match[2], None), torch._ops.OpOverload)
    return _BETWEEN_SIZES.fullmatch(target) is not None


def _is_expression(text: str) -> bool:
    """Whether it is made of symbols and whole numbers by functions that are known; torch evaluates it as Python."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _SYNTAX):
            return False
        if isinstance(node, ast.Name) and node.id not in _FUNCTIONS:
            return False
        if isinstance(node, ast.Constant) and not (
            isinstance(node.value, bool | int) or (isinstance(node.value, str) and node.value.isidentifier())
        ):
            return False
    return True


def _is_tree(text: str) -> bool:
    """Whether it describes arguments nested in tuples, lists and dicts, and no class to import."""
    tree = json.loads(text)
    return isinstance(tree, list) and len(tree) == 2 and tree[0] == 1 and _is_node(tree[1])


def _is_node(node: Any) -> bool:
    if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        return False
    context, children = node["context"], node["children_spec"]
    names = json.loads(context) if isinstance(context, str) else context
    return (
        node["type"] in _TREES
        and (names is None or (isinstance(names, list) and all(isinstance(name, str | int) for name in names)))
        and isinstance(children, list)
        and all(map(_is_node, children))
    )


def _is_note(text: str) -> bool:
    return re.fullmatch(r"[\w.,;:<>\[\]()' @/-]*", text) is not None


_RULES: dict[str, Callable[[str], bool]] = {
    "target": _is_operator,
    "as_operator": _is_operator,
    "expr_str": _is_expression,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    "guards_code": lambda text: False,
    "path_name": lambda text: re.fullmatch(r"(weight|tensor)_\d+", text) is not None,
    "as_string": lambda text: True,  # a value, of which code is made as a literal
    "nn_module_stack": _is_note,
    "torch_fn": _is_note,
    "torch_version": lambda text: re.fullmatch(r"[\w.+-]*", text) is not None,
}
