"""What one forward pass of a module costs, layer by layer, counted on a real batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)
_MOVES_NOTHING = (nn.Identity, nn.Flatten, nn.Unflatten)
_ROOT = "(root)"


@dataclass(frozen=True)
class LayerCost:
    """One layer's share of one forward pass of one batch.

    Attributes:
        name: Module path; `(root)` for work outside any submodule.
        kind: `linear`, `convolution`, or `other`.
        forward_flops: Of matrix products, convolutions and attention; a multiply-add is two.
        parameter_bytes: Of the module's own parameters.
        input_bytes: Of the tensors that come in.
        output_bytes: Of the tensors that go out.
        quantizable: Whether `ptq` and `qat` quantize it.
        quantizes_activations: Whether `qat` rounds its input too (not under weight-only schemes).
        grouped: A grouped convolution, which has no int8 training kernel and stays floating-point under `ptq`.
    """

    name: str
    kind: Literal["linear", "convolution", "other"]
    forward_flops: float
    parameter_bytes: float
    input_bytes: float
    output_bytes: float
    quantizable: bool
    quantizes_activations: bool = True
    grouped: bool = False

    @property
    def activation_bytes(self) -> float:
        """Bytes of input and output."""
        return self.input_bytes + self.output_bytes

    def scaled(self, batch_scale: float) -> "LayerCost":
        """The cost of a batch that is `batch_scale` times as large; parameters stay."""
        return replace(
            self,
            forward_flops=self.forward_flops * batch_scale,
            input_bytes=self.input_bytes * batch_scale,
            output_bytes=self.output_bytes * batch_scale,
        )


def measure_costs(
    run_step: Callable[[], object],
    module: nn.Module,
    quantized: Mapping[str, bool] | None = None,
) -> list[LayerCost]:
    """Count FLOPs and bytes of every layer on one real batch.

    Args:
        run_step: One forward pass of `module` up to the loss (`module.training_step(batch, 0)`), without backward.
            Give it a copy where a step leaves traces (batch statistics, metrics); random numbers are put back.
        module: The module that `run_step` runs, in floating point and on the device where the batch lies.
        quantized: Names of the layers that the run's scheme quantizes -> whether their activations are quantized too.
            None: every Linear, Conv1d and Conv2d, with activations.

    Returns:
        One entry per module that did something itself, in order of first completion. Empty if nothing did.
    """
    totals: dict[str, LayerCost] = {}
    open_calls: list[float] = []
    attributed = 0.0
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any) -> None:
            # Flops before this call, to which the calls inside it will add what they take for themselves.
            open_calls.append(float(counter.get_total_flops()))

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(called: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal attributed
            now = float(counter.get_total_flops())
            own_flops = now - open_calls.pop()
            open_calls[:] = [before + own_flops for before in open_calls]
            attributed += own_flops
            cost = _layer_cost(name, called, own_flops, (args, kwargs), output, quantized)
            if cost is not None:
                totals[name] = _added(totals[name], cost) if name in totals else cost

        return hook

    handles = []
    for name, submodule in module.named_modules():
        handles.append(submodule.register_forward_pre_hook(enter(name or _ROOT)))
        handles.append(submodule.register_forward_hook(leave(name or _ROOT), with_kwargs=True))
    cuda_devices = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(cuda_devices)), counter:
            run_step()
    finally:
        for handle in handles:
            handle.remove()
    outside = counter.get_total_flops() - attributed
    if outside > 0:
        # training_step itself is no module call: products written there belong to nobody else.
        rest = LayerCost(_ROOT, "other", outside, 0.0, 0.0, 0.0, quantizable=False)
        totals[_ROOT] = _added(totals[_ROOT], rest) if _ROOT in totals else rest
    return list(totals.values())


def _layer_cost(
    name: str, module: nn.Module, own_flops: float, given: Any, output: Any, quantized: Mapping[str, bool] | None
) -> LayerCost | None:
    """What the module did itself, or None for a mere container."""
    parameter_bytes = float(sum(p.numel() * p.element_size() for p in module.parameters(recurse=False)))
    is_leaf = next(module.children(), None) is None
    if not own_flops and not parameter_bytes and (not is_leaf or isinstance(module, _MOVES_NOTHING)):
        return None
    moves = bool(own_flops) or is_leaf
    by_default = type(module) in _QUANTIZABLE
    return LayerCost(
        name=name,
        kind="linear" if isinstance(module, nn.Linear) else "convolution" if isinstance(module, _ConvNd) else "other",
        forward_flops=own_flops,
        parameter_bytes=parameter_bytes,
        input_bytes=_tensor_bytes(given) if moves else 0.0,
        output_bytes=_tensor_bytes(output) if moves else 0.0,
        quantizable=by_default if quantized is None else name in quantized,
        quantizes_activations=True if quantized is None else quantized.get(name, False),
        grouped=isinstance(module, _ConvNd) and module.groups > 1,
    )


def _added(first: LayerCost, second: LayerCost) -> LayerCost:
    """A layer that is called again; its parameters are held once."""
    return replace(
        first,
        forward_flops=first.forward_flops + second.forward_flops,
        input_bytes=first.input_bytes + second.input_bytes,
        output_bytes=first.output_bytes + second.output_bytes,
    )


def _tensor_bytes(tree: Any) -> float:
    return float(sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)))


def _attention_flops(query: Any, key: Any, value: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # torch leaves it untyped


# torch's own table has the attention kernels of GPUs only.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
