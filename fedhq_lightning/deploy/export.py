"""Files of the deployed model: an exported program that torch alone runs, or packed integers for our loader."""

import io
import json
import logging
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TextIO, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import TypedDict

from fedhq_lightning.deploy.program_file import FACTS, Program
from fedhq_lightning.deploy.program_layers import become_program_layers
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.conversion import become_integer, copy_without_trainer
from fedhq_lightning.quantize.integer_layers import INTEGER_TYPES, IntegerLayer
from fedhq_lightning.quantize.lanes import restore, turn_off_fast_paths
from fedhq_lightning.quantize.packing import pack, packed_bytes, unpack
from fedhq_lightning.quantize.scheme import LayerScheme
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.typed_json import parse_json
from fedhq_lightning.support.views import RANGE
from fedhq_lightning.types import AnyModule

PACKED_FORMAT = "fedhq-packed-model"
PACKED_VERSION = 1
Values = TypeVar("Values")


class _PackedLayer(TypedDict):
    scheme: str
    shape: list[int]


class ExportError(RuntimeError):
    """A module cannot be written as an exported program; the message has the cause's first line."""


class _ForwardOnly(nn.Module):
    """A module without the attributes that a LightningModule has beside its layers, which export would trip over."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


def export_program(
    converted: nn.Module, example_args: tuple[Any, ...], path: Path, facts: Mapping[str, str] | None = None
) -> nn.Module:
    """Write a module as a program that `torch.export.load(path).module()` runs without this package.

    Args:
        converted: A module in evaluation mode, as `convert` returns it.
        example_args: Positional arguments of one forward call. The first dimension of every tensor is the batch and
            may vary in the program; nothing else may. Their values are compared, not stored.
        path: File to write, whole or not at all. By custom `*.pt2`.
        facts: What it tells of the model, by name; `extra/facts.json` in the archive.

    Returns:
        The program as it was read back from what is in the file.

    Raises:
        ExportError: The module cannot be exported with a batch of any size, or the program that was read back differs
            from the module by a single bit, on the example or on its first sample alone.
        ConfigurationError: The file cannot be written.
    """
    path, kind = expand_path(path), type(converted).__name__
    tensors = [leaf for leaf in pytree.tree_leaves(example_args) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors or any(tensor.shape[0] == 0 for tensor in tensors):
        raise ExportError("the example must have tensors with at least one sample")
    with torch.no_grad():
        try:
            with tracer_silent():
                program = integer_program(converted, example_args)
            # In memory: torch ends the process, in C++, where it writes to a disk that is full.
            written = io.BytesIO()
            torch.export.save(program, written, extra_files={FACTS: json.dumps(dict(facts or {}))})
            content = _with_compressed_text(written)
            loaded = Program(io.BytesIO(content))
        except Exception as error:  # export raises whatever the traced code and a dozen of its own passes raise
            raise ExportError(f"{kind} cannot be exported: {first_line(error)}") from error
        for args, what in ((example_args, "the example"), (first_samples(example_args, 1), "a batch of one")):
            try:
                same = same_outputs(loaded(*args), converted(*args))
            except Exception as error:  # a program's guards have no common type of error
                raise ExportError(
                    f"{type(converted).__name__}, exported, fails on {what}: {first_line(error)}"
                ) from error
            if not same:
                raise ExportError(f"{type(converted).__name__}, exported, differs from the module on {what}")
    write_atomically(path, content)
    return loaded


def integer_program(converted: nn.Module, example_args: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """A converted module as torch traces it, of the module's bits; see `traced_program` for the arguments."""
    module = copy_without_trainer(converted)
    become_program_layers(module)
    return traced_program(module, example_args)


def traced_program(
    module: nn.Module, example_args: tuple[Any, ...], samples: int = 2, most: int | None = None
) -> torch.export.ExportedProgram:
    """A module as torch traces it, for a batch of any size.

    Args:
        module: In evaluation mode.
        example_args: As in `export_program`; their values go nowhere.
        samples: That it is traced with, at least 2: a batch of one would be taken for a constant.
        most: Samples that a batch may have; None: any number.
    """
    # Zeros: programs carry their example, which is somebody's data.
    args = pytree.tree_map(
        lambda leaf: leaf.new_zeros((samples, *leaf.shape[1:])) if _has_batch(leaf) else leaf, example_args
    )
    batch = torch.export.Dim("batch", min=1, max=most)
    shapes = pytree.tree_map(lambda leaf: {0: batch} if _has_batch(leaf) else None, args)
    program = torch.export.export(_ForwardOnly(module), args, dynamic_shapes=(shapes,))
    for node in list(program.graph.nodes):
        node.meta.pop("stack_trace", None)  # names folders of this machine
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # one before each change of dtype
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _with_compressed_text(program: io.BytesIO) -> bytes:
    """Deflate a program's graph, which is text: as torch writes it, it is larger than the weights of a small model."""
    smaller = io.BytesIO()
    with zipfile.ZipFile(program) as archive, zipfile.ZipFile(smaller, "w") as compressed:
        for entry in archive.infolist():
            is_text = entry.filename.endswith(".json")
            compressed.writestr(entry, archive.read(entry), zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED)
    return smaller.getvalue()


@contextmanager
def tracer_silent() -> Iterator[None]:
    """Silence what torch says of a module that it cannot trace: the error says it, and is handled.

    What the module itself prints and warns of in its forward is the user's to see.
    """
    tracers = ("torch.export", "torch.fx", "torch._dynamo")
    # As recurrent layers do; results are compared in the end.
    noise = ["The tensor attributes? .* assigned during export"]
    with libraries_quiet(*tracers, level=logging.CRITICAL, noise=noise), redirect_stderr(_WithoutGraphs(sys.stderr)):
        yield


class _WithoutGraphs(io.TextIOBase):
    """A stream, but for the graph that torch prints of what it has traced when it fails, and the line's end after it.

    Args:
        stream: Gets everything else.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._after_graph = False

    def write(self, text: str) -> int:
        is_graph = text.lstrip().startswith("def forward(self, arg")
        if not is_graph and not (self._after_graph and text == "\n"):
            self._stream.write(text)
        self._after_graph = is_graph
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def save_packed(converted: nn.Module, path: Path) -> None:
    """Write a converted module's state as safetensors, integers packed to their bits.

    For every integer layer `<name>.packed_weight` (see `packing`), `<name>.scale`, `<name>.bias` and, of a static
    range, `<name>.activation_scale` and `<name>.activation_zero_point`; everything else as in `state_dict()`. The
    header's `layers` has each layer's scheme and weight shape.

    Args:
        converted: As `convert` returns it.
        path: File to write, whole or not at all.

    Raises:
        ConfigurationError: Nothing in the module is quantized, its state holds something other than tensors, or the
            file cannot be written.
    """
    path = expand_path(path)
    layers = {name: layer for name, layer in converted.named_modules() if isinstance(layer, IntegerLayer)}
    if not layers:
        raise ConfigurationError(f"{type(converted).__name__} has no integer layer; convert it first")
    state: dict[str, Tensor] = {}
    for key, value in nn.Module.state_dict(converted).items():  # whole, where a module's own leaves frozen parts out
        if not isinstance(value, Tensor):
            raise ConfigurationError(f"state {key!r} is a {type(value).__name__}; only tensors can be packed")
        # Copies, because safetensors refuses tensors that share memory.
        state[key] = value.detach().to("cpu", copy=True).contiguous()
    for name, layer in layers.items():
        state[_key(name, "packed_weight")] = pack(state.pop(_key(name, "quantized_weight")), layer.scheme.weight_bits)
    described = {name: {"scheme": str(layer.scheme), "shape": layer.weight_shape} for name, layer in layers.items()}
    header = {"format": PACKED_FORMAT, "version": str(PACKED_VERSION), "layers": json.dumps(described, sort_keys=True)}
    write_atomically(path, safetensors.torch.save(state, metadata=header))


def packed_size(converted: nn.Module) -> int:
    """Bytes that a converted module's tensors take in `save_packed`'s file, its header left out."""
    size = sum(value.nbytes for value in converted.state_dict().values() if isinstance(value, Tensor))
    for layer in converted.modules():
        if isinstance(layer, IntegerLayer):
            count = torch.Size(layer.weight_shape).numel()
            size += packed_bytes(count, layer.scheme.weight_bits) - count
    return size


def load_packed(path: Path, module: AnyModule) -> AnyModule:
    """Read what `save_packed` wrote.

    Args:
        path: The file.
        module: The model before conversion, with any weights; it stays as it is.

    Returns:
        The converted model, in evaluation mode, on the CPU; its results are bitwise those of the model saved.

    Raises:
        ConfigurationError: The file is missing, damaged, of another format or version, or made for another model.
    """
    path = expand_path(path)
    try:
        state = safetensors.torch.load_file(path)
        with safe_open(path, framework="pt") as file:
            header: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path}: cannot be read as safetensors: {first_line(error)}") from error
    if header.get("format") != PACKED_FORMAT or header.get("version") != str(PACKED_VERSION):
        raise ConfigurationError(
            f"{path}: format {header.get('format')!r} version {header.get('version')!r}; "
            f"this reads {PACKED_FORMAT!r} version {PACKED_VERSION}"
        )
    loaded = restore(copy_without_trainer(module)).cpu().eval()
    turn_off_fast_paths(loaded)
    try:
        for name, layer in parse_json(header["layers"], dict[str, _PackedLayer]).items():
            _take_layer(loaded, name, LayerScheme.parse(layer["scheme"]), tuple(layer["shape"]), state)
        loaded.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"{path}: was not made for this {type(module).__name__}: {first_line(error)}"
        ) from error
    return loaded


def _take_layer(
    module: nn.Module, name: str, scheme: LayerScheme, shape: tuple[int, ...], state: dict[str, Tensor]
) -> None:
    layer = module.get_submodule(name)
    found = tuple(layer.get_parameter("weight").shape)
    if type(layer) not in INTEGER_TYPES or found != shape:
        raise ValueError(f"layer {name!r} is a {type(layer).__name__} of shape {found}, not {shape}")
    if scheme.static_range:
        # Any range will do: the state that is loaded next has the grid that it stands for.
        layer.register_buffer(RANGE, torch.tensor([0.0, 1.0]))
    become_integer(layer, scheme)
    count = torch.Size(shape).numel()
    integers = unpack(state.pop(_key(name, "packed_weight")), scheme.weight_bits, count)
    state[_key(name, "quantized_weight")] = integers.view(shape[0], -1)


def _key(layer: str, tensor: str) -> str:
    return f"{layer}.{tensor}" if layer else tensor


def first_samples(values: Values, count: int) -> Values:
    """Arguments, nested as they may be, with the first `count` samples of every tensor."""
    found: Values = pytree.tree_map(lambda leaf: leaf[:count] if _has_batch(leaf) else leaf, values)
    return found


def batch_size(args: tuple[Any, ...]) -> int:
    """First dimension of the first tensor that has one."""
    return next(len(leaf) for leaf in pytree.tree_leaves(args) if _has_batch(leaf))


def _has_batch(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def same_outputs(first: Any, second: Any) -> bool:
    """Whether two outputs are the same bits, NaN where NaN is."""
    left, right = pytree.tree_leaves(first), pytree.tree_leaves(second)
    return len(left) == len(right) and all(_same_leaf(a, b) for a, b in zip(left, right, strict=True))


def _same_leaf(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # A model that has diverged yields NaN in both, which is not equal to itself.
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
