"""A mend of ExecuTorch 1.5: where in a model XNNPACK changes the layout of what a convolution quantizes.

XNNPACK convolves images with channels last, so its partition of a graph copies the input of a convolution into that
layout. For an input that is quantized with a range of its own, ExecuTorch puts the copy not before the quantization but
before the first operation that leads there, and forgets to tell the others. Where that is a sum, as after a residual
connection, or something else than the convolution takes what lies between, the program has tensors of two layouts in
one operation, and does not run. Here the copy goes where the quantization begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def layouts_changed_where_quantized() -> Iterator[None]:
    """While a model is lowered: copies into the layout of convolutions are made right before they are quantized."""
    from executorch.backends.xnnpack import _passes
    from executorch.backends.xnnpack.utils.quant_utils import is_dynamic_qdq

    known: Any = _passes.ChannelsLastTaggedReshapePass

    class ChangeWhereQuantized(known):  # type: ignore[misc]  # of a package without types
        def input_to_nhwc(self, graph_module: Any, input_node: Any, target_node: Any) -> None:
            if not is_dynamic_qdq(input_node):
                super().input_to_nhwc(graph_module, input_node, target_node)
                return
            quantize = input_node.args[0]
            source, find_range = quantize.args[0], quantize.args[1].args[0]
            super().input_to_nhwc(graph_module, source, quantize)
            find_range.replace_input_with(source, quantize.args[0])

    _passes.ChannelsLastTaggedReshapePass = ChangeWhereQuantized
    try:
        yield
    finally:
        _passes.ChannelsLastTaggedReshapePass = known
