"""`model.onnx` read back: looked through, then run by onnxruntime on torch tensors.

An ONNX file computes, and does nothing else: it has no code beside its operators. But it may name other files as the
places of its tensors, operators of libraries that somebody has registered, and models within it as functions. What this
package writes has none of these, and a file that has is refused before onnxruntime sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.integer_matmul import has_exact_kernel
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.untrusted_files import read_bytes

if TYPE_CHECKING:
    import onnx

_MOST_BYTES = 2**31 - 1
"""That a file of protobuf may have."""
_DOMAINS = ("", "ai.onnx")


class OnnxModel(nn.Module):
    """A model in onnxruntime, on the CPU and torch's number of threads.

    Args:
        content: An ONNX file's. What a file of ours tells of how its outputs are nested is kept to.

    Attributes:
        facts: What the file tells of its model, by name.

    Raises:
        ConfigurationError: onnxruntime cannot read it.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if not has_exact_kernel(torch.device("cpu")):
            # Pairs of products of 8 bits overflow the 16 that x86 without VNNI adds them in; this takes other ones.
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise ConfigurationError(f"onnxruntime cannot read it: {first_line(error)}") from error
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]
        self.facts: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._nesting = self.facts.get("outputs", "tensor")

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Outputs of one forward call, nested as the model's own.

        Raises:
            ValueError: There are other arguments than the file's inputs.
        """
        leaves = pytree.tree_leaves((args, keywords))
        if len(leaves) != len(self._inputs) or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise ValueError(f"it takes {len(self._inputs)} tensors ({', '.join(self._inputs)}) and nothing else")
        arrays = [leaf.detach().cpu().contiguous().numpy() for leaf in leaves]
        found = self._session.run(None, dict(zip(self._inputs, arrays, strict=True)))
        outputs = [torch.from_numpy(array) for array in found]
        if self._nesting == "dict":
            return dict(zip(self._outputs, outputs, strict=True))
        return outputs[0] if self._nesting == "tensor" else tuple(outputs)


def read(file: Path, trust: bool = False) -> nn.Module:
    """Read an ONNX file with nothing in it but ONNX's own operators and its tensors.

    Args:
        file: A `.onnx` file.
        trust: Read it whatever is in it.

    Raises:
        ConfigurationError: There is something else in it, it is damaged, or larger than 2 GiB.
    """
    content = read_bytes(file, _MOST_BYTES)
    try:
        return OnnxModel(content if trust else _checked(content))
    except ConfigurationError as error:
        raise ConfigurationError(f"{file.name}: {error}") from error


def _checked(content: bytes) -> bytes:
    """The model, written anew from what was looked at: other readers may find something else in the same bytes."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ConfigurationError("is damaged, or no ONNX file") from error
    found = next(_what_is_not_ours(proto), None)
    if found is not None:
        raise ConfigurationError(
            f"is no model that this package writes: it has {found}, so it was not loaded (--trust loads it)"
        )
    return bytes(proto.SerializeToString())


def _what_is_not_ours(proto: onnx.ModelProto) -> Iterator[str]:
    if proto.functions:
        yield f"the function {proto.functions[0].name[:60]!r}"
    for opset in proto.opset_import:
        if opset.domain not in _DOMAINS:
            yield f"operators of {opset.domain[:60]!r}"
    yield from _of_graph(proto.graph)


def _of_graph(graph: onnx.GraphProto) -> Iterator[str]:
    tensors = [*graph.initializer]
    for sparse in graph.sparse_initializer:
        tensors += [sparse.values, sparse.indices]
    for node in graph.node:
        if node.domain not in _DOMAINS:
            yield f"an operator of {node.domain[:60]!r}"
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [sparse.values, sparse.indices]
            for inner in ([attribute.g] if attribute.HasField("g") else []) + [*attribute.graphs]:
                yield from _of_graph(inner)
    for tensor in tensors:
        if tensor.data_location or tensor.external_data:
            yield f"a tensor in another file, {tensor.name[:60]!r}"
