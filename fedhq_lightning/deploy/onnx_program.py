"""`model.onnx`: the deployed model for onnxruntime alone, with weights packed to their bits."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedhq_lightning.deploy.export import ExportError, traced_program, tracer_silent
from fedhq_lightning.deploy.model_to_write import ModelToWrite, describe_inputs
from fedhq_lightning.deploy.onnx_layers import EITHER, LayerForOnnx, translations
from fedhq_lightning.quantize import IntegerLayer
from fedhq_lightning.quantize.conversion import copy_without_trainer
from fedhq_lightning.quantize.grid import integer_range
from fedhq_lightning.quantize.packing import pack
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.support.text import first_line
from fedhq_lightning.version import __version__

if TYPE_CHECKING:
    import onnx

_OPSET = 21
"""The first with integers of 4 bits."""
_OPSET_OF_2_BITS = 25
_LIBRARIES = ("torch.onnx", "onnxscript", "onnx_ir")
_NOISE = (r"`isinstance\(treespec, LeafSpec\)` is deprecated",)
_STAND_IN = "fedhq_onnx"


def write(model: ModelToWrite, path: Path) -> None:
    """Write a model as ONNX.

    The file holds no example, no names of this machine's folders, and no data beside itself. Its `metadata_props` have
    `ModelToWrite.facts`, and `outputs`: how they are nested, "tensor", "tuple" or "dict", or "other".

    Args:
        model: With its layers converted.
        path: File to write, whole or not at all.

    Raises:
        ExportError: The module cannot be exported with a batch of any size, or takes something else than tensors.
        ConfigurationError: The file cannot be written.
    """
    write_atomically(path, _contents(model)[0])


def usage(model: ModelToWrite) -> str:
    """Lines of Python that run the written file."""
    names = _input_names(model.converted, model.example_args)
    arrays = ", ".join(f'"{name}": {name}' for name in names)
    return f"""import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
outputs = session.run(None, {{{arrays}}})  # NumPy arrays: {describe_inputs(model.example_args)}"""


def in_float(model: ModelToWrite) -> bytes:
    """The same model as ONNX in float32, its weights on their grid.

    Raises:
        ExportError: See `write`.
    """
    return _contents(model)[1]


def _contents(model: ModelToWrite) -> tuple[bytes, bytes]:
    """The integer program and the one in float32, both of one export, which takes seconds."""
    if "onnx" not in model.made:
        model.made["onnx"] = _exported(model)
    contents: tuple[bytes, bytes] = model.made["onnx"]
    return contents


def _exported(model: ModelToWrite) -> tuple[bytes, bytes]:
    converted, example_args = model.converted, model.example_args
    kind = type(converted).__name__
    others = [leaf for leaf in pytree.tree_leaves(example_args) if not isinstance(leaf, Tensor)]
    if others:
        raise ExportError(f"{kind}.forward takes something else than tensors ({others[0]!r})")
    module = copy_without_trainer(converted)
    for layer in module.modules():
        if isinstance(layer, IntegerLayer):
            # Hooks and second names of the layer stay; on this copy only.
            layer.add_module(_STAND_IN, LayerForOnnx(layer))
            layer.forward = layer.get_submodule(_STAND_IN).forward
    try:
        with torch.no_grad(), tracer_silent(), libraries_quiet(*_LIBRARIES, level=logging.CRITICAL, noise=_NOISE):
            traced = traced_program(module, example_args)
            program: Any = torch.onnx.export(
                traced,
                custom_translation_table=translations(),
                opset_version=_OPSET,
                optimize=False,
                verbose=False,
            )
            proto: onnx.ModelProto = program.model_proto
    except Exception as error:  # export raises whatever the traced code and a dozen of its own passes raise
        raise ExportError(f"{kind} cannot be exported to ONNX: {first_line(_cause(error))}") from error
    in_float = type(proto).FromString(proto.SerializeToString())
    outputs = traced.call_spec.out_spec
    for place, each in enumerate((proto, in_float)):
        _choose(each, place)
        _strip(each)
        _pack(each)
        _rename(each, _input_names(converted, example_args), _output_names(outputs))
        each.producer_name, each.producer_version = "fedhq_lightning", __version__
        for name, text in {**model.facts(), "outputs": _nesting(outputs)}.items():
            each.metadata_props.add(key=name, value=text)
    return bytes(proto.SerializeToString(deterministic=True)), bytes(in_float.SerializeToString(deterministic=True))


def _choose(proto: onnx.ModelProto, place: int) -> None:
    """Let whatever takes a layer's two outputs take one of them."""
    graph = proto.graph
    chosen = {node.output[0]: node.input[place] for node in graph.node if node.op_type == EITHER}
    for node in graph.node:
        if node.op_type != EITHER:
            node.input[:] = [chosen.get(name, name) for name in node.input]
    for value in graph.output:
        value.name = chosen.get(value.name, value.name)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _strip(proto: onnx.ModelProto) -> None:
    """Leave out what no output needs, and what says how the file was made, as stack traces with folders do."""
    graph = proto.graph
    used, kept_nodes = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            kept_nodes.append(node)
            used.update(_taken_by(node))
    nodes = [type(node).FromString(node.SerializeToString()) for node in reversed(kept_nodes)]
    del graph.node[:]
    graph.node.extend(nodes)
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _taken_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names of values that a node takes, in graphs within it too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + [*attribute.graphs]:
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _taken_by(inner)


def _pack(proto: onnx.ModelProto) -> None:
    """Hold weights that fit into 4 bits as INT4, into 2 as INT2, which a runtime unpacks as it loads the model."""
    from onnx import TensorProto, helper, numpy_helper

    graph, unpacked = proto.graph, []
    for tensor in graph.initializer:
        if not tensor.name.endswith(f"{_STAND_IN}.integers"):
            continue
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for width, kind, opset in ((2, TensorProto.INT2, _OPSET_OF_2_BITS), (4, TensorProto.INT4, _OPSET)):
            lowest, highest = integer_range(width)
            if int(values.min()) >= lowest and int(values.max()) <= highest:
                unpacked.append(helper.make_node("Cast", [f"{tensor.name}.packed"], [tensor.name], to=TensorProto.INT8))
                tensor.name, tensor.data_type, tensor.raw_data = f"{tensor.name}.packed", kind, _packed(values, width)
                proto.opset_import[0].version = max(proto.opset_import[0].version, opset)
                break
    nodes = [*unpacked, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _packed(values: Tensor, width: int) -> bytes:
    """ONNX's layout: the first value in the lowest bits, the last byte filled up with zeros, which `pack` has too."""
    return bytes(pack(values, width).numpy())


def _input_names(module: nn.Module, example_args: tuple[Any, ...]) -> list[str]:
    """By the parameters of `forward`, and within nested arguments by their keys."""
    names = list(inspect.signature(module.forward).parameters)
    found = []
    for name, argument in zip(names, example_args, strict=False):
        for path, _ in pytree.tree_flatten_with_path(argument)[0]:
            found.append("_".join([name, *(re.sub(r"\W", "", str(key)) for key in path)]))
    return _unique(found)


def _unique(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)]


def _nesting(spec: pytree.TreeSpec) -> str:
    if spec.is_leaf():
        return "tensor"
    is_flat = all(child.is_leaf() for child in spec.children())
    return spec.type.__name__ if is_flat and spec.type in (tuple, dict) else "other"


def _output_names(outputs: pytree.TreeSpec) -> list[str]:
    if outputs.is_leaf():
        return ["output"]
    if _nesting(outputs) == "dict":
        return _unique([re.sub(r"\W", "_", str(key)) for key in outputs.context])
    return [f"output_{place}" for place in range(outputs.num_leaves)]


def _rename(proto: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> None:
    """Give inputs, outputs and their first dimension names that a reader knows."""
    graph = proto.graph
    new = dict(zip([value.name for value in graph.output], outputs, strict=True))
    new |= dict(zip([value.name for value in graph.input], inputs, strict=True))
    for name in {*inputs, *outputs}.intersection(value for node in graph.node for value in node.output) - set(new):
        new[name] = f"{name}.inner"
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for value in (*graph.input, *graph.output):
        value.name = new[value.name]
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and dimensions[0].dim_param:
            dimensions[0].dim_param = "batch"
