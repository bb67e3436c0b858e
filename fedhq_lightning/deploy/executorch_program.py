"""`model.pte`: the deployed model for ExecuTorch on phones and other small devices, computed by XNNPACK."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fedhq_lightning.deploy.executorch_layers import LayerForExecutorch, refusal
from fedhq_lightning.deploy.executorch_layouts import layouts_changed_where_quantized
from fedhq_lightning.deploy.executorch_model import executorch_quiet
from fedhq_lightning.deploy.export import ExportError, traced_program, tracer_silent
from fedhq_lightning.deploy.fold_norms import fold_batch_norms
from fedhq_lightning.deploy.model_to_write import ModelToWrite, describe_inputs
from fedhq_lightning.quantize import IntegerLayer
from fedhq_lightning.quantize.conversion import copy_without_trainer
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.text import first_line

MOST_SAMPLES = 64
"""In one call: ExecuTorch plans memory for the largest batch."""
_TRACED_SAMPLES = 32
"""Below 16 torch's convolutions are traced for fewer than 16 samples alone."""
_STAND_IN = "fedhq_executorch"


def write(model: ModelToWrite, path: Path) -> None:
    """Write a model as a program of ExecuTorch, for batches of 1 to `MOST_SAMPLES`.

    Beside `forward` it has methods without arguments that give the texts of `ModelToWrite.facts`, and `outputs`: how
    they are nested, as JSON: "tensor", "tuple" or the keys of a dict.

    Args:
        model: With its layers converted.
        path: File to write, whole or not at all.

    Raises:
        ExportError: XNNPACK cannot compute a layer on its grid, or the module cannot be exported.
        ConfigurationError: The file cannot be written.
    """
    write_atomically(path, _as_program(model))


def usage(model: ModelToWrite) -> str:
    """Lines of Python that run the written file."""
    return f"""import torch
from executorch.runtime import Runtime

program = Runtime.get().load_program("model.pte")
inputs = ...  # a list of tensors: {describe_inputs(model.example_args)}; 1 to {MOST_SAMPLES} samples
outputs = program.load_method("forward").execute(inputs)"""


def in_float(model: ModelToWrite) -> bytes:
    """The same model for XNNPACK in float32, its weights on their grid.

    Raises:
        ExportError: See `write`.
    """
    return _as_program(model, in_float=True)


def _as_program(model: ModelToWrite, in_float: bool = False) -> bytes:
    kind = type(model.converted).__name__
    others = [leaf for leaf in pytree.tree_leaves(model.example_args) if not isinstance(leaf, Tensor)]
    if others:
        raise ExportError(f"{kind}.forward takes something else than tensors ({others[0]!r})")
    module = copy_without_trainer(model.converted)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, IntegerLayer):
            if why := refusal(layer):
                raise ExportError(f"layer {name!r} {why}")
            stand_in = LayerForExecutorch(layer, in_float)
            layer._buffers.clear()  # which the file would have, though nobody reads them
            # Hooks and second names of the layer stay; on this copy only.
            layer.add_module(_STAND_IN, stand_in)
            layer.forward = stand_in.forward
    try:
        with torch.no_grad(), executorch_quiet():
            import_module("torch.ao.quantization.fx._decomposed")  # the operators that layers are traced as
            with tracer_silent():
                program = traced_program(module, model.example_args, _TRACED_SAMPLES, MOST_SAMPLES)
            fold_batch_norms(program)
            facts = {**model.facts(), "outputs": json.dumps(_nesting(program.call_spec.out_spec))}
            return _lowered(program, facts)
    except Exception as error:  # export raises whatever the traced code and a dozen of its own passes raise
        raise ExportError(f"{kind} cannot be exported to ExecuTorch: {first_line(error)}") from error


def _lowered(program: torch.export.ExportedProgram, facts: dict[str, str]) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with layouts_changed_where_quantized():
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=facts)
    return bytes(edge.to_executorch().buffer)


def _nesting(spec: pytree.TreeSpec) -> str | list[str]:
    if spec.is_leaf():
        return "tensor"
    if spec.type is dict and all(child.is_leaf() for child in spec.children()):
        return [str(key) for key in spec.context]
    return "tuple"
