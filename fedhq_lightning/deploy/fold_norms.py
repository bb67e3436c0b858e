"""BatchNorm in the scales and biases of the integer layer before it, whose integers stay, but for their signs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

_PRODUCTS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


def fold_batch_norms(program: ExportedProgram) -> None:
    """Fold every BatchNorm that follows a quantized layer and nothing else, in place.

    Where it turns a channel's sign, the channel's weights are turned, since runtimes take no scales below zero; where a
    weight has no counterpart of the other sign on its grid, the norm stays.

    Args:
        program: As traced, in evaluation mode; weights are `dequantize_per_channel` of buffers.
    """
    graph = program.graph
    for norm in graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        product = norm.args[0]
        if product.target in _PRODUCTS and len(product.users) == 1 and _folded(program, product, norm):
            norm.replace_all_uses_with(product)
            graph.erase_node(norm)
    program.graph_module.recompile()


def _folded(program: ExportedProgram, product: fx.Node, norm: fx.Node) -> bool:
    weight = product.args[1]
    if not isinstance(weight, fx.Node) or "dequantize_per_channel" not in str(weight.target) or len(product.args) < 3:
        return False
    integers_node, scale_node, _, _, lowest, *_ = weight.args
    nodes = [node for node in (integers_node, scale_node, product.args[2]) if isinstance(node, fx.Node)]
    if len(nodes) < 3 or any(len(node.users) > 1 for node in nodes):
        return False  # the layer computes elsewhere too
    names = [_state_name(program, node) for node in nodes]
    integers, scale, bias = (program.state_dict[name] for name in names)
    gamma, beta, mean, variance = (_value(program, node) for node in norm.args[1:5])
    epsilon = norm.args[7]
    if mean is None or variance is None or not isinstance(epsilon, float):
        return False  # it has no running statistics
    factor = torch.rsqrt(variance + epsilon) * (torch.ones_like(variance) if gamma is None else gamma)
    turned = factor < 0
    if bool((integers[turned] == lowest).any()):
        return False
    signs = factor.sign().view(-1, *[1] * (integers.dim() - 1)).to(integers.dtype)
    new = (
        integers * signs,
        torch.where(factor == 0, torch.ones_like(scale), scale * factor.abs()),
        (bias - mean) * factor + (0.0 if beta is None else beta),
    )
    for name, value in zip(names, new, strict=True):
        program.state_dict[name] = value
    return True


def _state_name(program: ExportedProgram, node: fx.Node) -> str:
    signature = program.graph_signature
    names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return names[node.name]


def _value(program: ExportedProgram, node: Any) -> Tensor | None:
    return None if node is None else program.state_dict[_state_name(program, node)]
