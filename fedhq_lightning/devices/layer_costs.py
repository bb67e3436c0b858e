"""What one forward pass of a module costs, layer by layer, counted on a real batch."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)
_ROOT = "(root)"


@dataclass(frozen=True)
class LayerCost:
    """One layer's share of one forward pass of one batch.

    Attributes:
        name: Module path; `(root)` for work outside any submodule.
        kind: `linear`, `convolution`, or `other`.
        forward_flops: Of matrix products, convolutions and attention; a multiply-add is two.
        parameter_bytes: Of the module's own parameters.
        input_bytes: Of the tensors that come in; of layers of kind `other`, what their operators read.
        output_bytes: Of the tensors that go out; of layers of kind `other`, what their operators write.
        quantizable: Whether `ptq` and `qat` quantize it.
        quantizes_activations: Whether `qat` rounds its input too (not under weight-only schemes).
        grouped: A grouped convolution, which has no int8 training kernel and stays floating-point under `ptq`.
        rows: Rows of the matrix product of one call: rows of a linear layer's input, output positions of all samples of
            a convolution; a mean where calls differ. 0 for other layers.
        weight_shape: Of a linear layer's or a convolution's weight; empty for other layers.
        calls: How often the layer is called.
        operators: torch operators that ran in all calls together, views aside: what a launch overhead is paid for.
        trained: Whether its weight trains, or anything of its own in layers of kind `other`.
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
    rows: float = 0.0
    weight_shape: tuple[int, ...] = ()
    calls: int = 1
    operators: int = 1
    trained: bool = True

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
            rows=self.rows * batch_scale,
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
    open_calls: list[_Work] = []
    attributed = _Work()
    flops = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    operators = _OperatorCounter()

    def now() -> _Work:
        return _Work(float(flops.get_total_flops()), operators.count, operators.read_bytes, operators.written_bytes)

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any) -> None:
            # Work before this call, to which the calls inside it will add what they take for themselves.
            open_calls.append(now())

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(called: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal attributed
            own = now() - open_calls.pop()
            open_calls[:] = [before + own for before in open_calls]
            attributed += own
            cost = _layer_cost(name, called, own, (args, kwargs), output, quantized)
            if cost is not None:
                totals[name] = _added(totals[name], cost) if name in totals else cost

        return hook

    handles = []
    for name, submodule in module.named_modules():
        handles.append(submodule.register_forward_pre_hook(enter(name or _ROOT)))
        handles.append(submodule.register_forward_hook(leave(name or _ROOT), with_kwargs=True))
    cuda_devices = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(cuda_devices)), _uncompiled(module), operators, flops:
            run_step()
    finally:
        for handle in handles:
            handle.remove()
    outside = now() - attributed
    if outside.operators > 0:
        # training_step itself is no module call: work written there belongs to nobody else.
        rest = _other_cost(_ROOT, outside, 0.0)
        totals[_ROOT] = _added(totals[_ROOT], rest) if _ROOT in totals else rest
    return list(totals.values())


@dataclass(frozen=True)
class _Work:
    """What ran between two points in time."""

    flops: float = 0.0
    operators: int = 0
    read_bytes: float = 0.0
    written_bytes: float = 0.0

    def __add__(self, other: "_Work") -> "_Work":
        return _Work(
            self.flops + other.flops,
            self.operators + other.operators,
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
        )

    def __sub__(self, other: "_Work") -> "_Work":
        return self + _Work(-other.flops, -other.operators, -other.read_bytes, -other.written_bytes)


class _OperatorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Counts operators that do something, and the bytes of their operands and results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.count = 0
        self.read_bytes = self.written_bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # What answers with its operand's own memory has done nothing.
        if not func.is_view and func not in _RELABELS:
            self.count += 1
            self.read_bytes += _tensor_bytes((args, kwargs))
            self.written_bytes += _tensor_bytes(result)
        return result


@contextmanager
def _uncompiled(module: nn.Module) -> Iterator[None]:
    """Layers that torch.compile wraps run eagerly: a compiled kernel shows no operators to count."""
    if not any(hasattr(part, "_orig_mod") for part in module.modules()):
        yield  # without the compiler's import, which takes seconds
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # the FLOP counter has global hooks
        yield


def _layer_cost(
    name: str, module: nn.Module, own: _Work, given: Any, output: Any, quantized: Mapping[str, bool] | None
) -> LayerCost | None:
    """What the module did itself, or None for a mere container."""
    parameters = list(module.parameters(recurse=False))
    parameter_bytes = float(sum(p.numel() * p.element_size() for p in parameters))
    if not own.operators and not parameter_bytes:
        return None
    if not isinstance(module, nn.Linear | _ConvNd):
        is_trained = any(p.requires_grad for p in parameters)
        return replace(_other_cost(name, own, parameter_bytes), trained=is_trained)
    by_default = type(module) in _QUANTIZABLE
    output_bytes = _tensor_bytes(output)
    shape = tuple(module.weight.shape)
    channels = module.out_channels if isinstance(module, _ConvNd) else shape[0]
    values = sum(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return LayerCost(
        name=name,
        kind="convolution" if isinstance(module, _ConvNd) else "linear",
        forward_flops=own.flops,
        parameter_bytes=parameter_bytes,
        input_bytes=_tensor_bytes(given),
        output_bytes=output_bytes,
        quantizable=by_default if quantized is None else name in quantized,
        quantizes_activations=True if quantized is None else quantized.get(name, False),
        grouped=isinstance(module, _ConvNd) and module.groups > 1,
        rows=values / max(channels, 1),
        weight_shape=shape,
        operators=own.operators,
        trained=module.weight.requires_grad,  # also one that spectral_norm or weight_norm computes
    )


def _other_cost(name: str, own: _Work, parameter_bytes: float) -> LayerCost:
    read_bytes = max(own.read_bytes - parameter_bytes, 0.0)
    return LayerCost(
        name, "other", own.flops, parameter_bytes, read_bytes, own.written_bytes, False, operators=own.operators
    )


def _added(first: LayerCost, second: LayerCost) -> LayerCost:
    """A layer that is called again; its parameters are held once."""
    return replace(
        first,
        forward_flops=first.forward_flops + second.forward_flops,
        input_bytes=first.input_bytes + second.input_bytes,
        output_bytes=first.output_bytes + second.output_bytes,
        rows=(first.rows * first.calls + second.rows * second.calls) / (first.calls + second.calls),
        calls=first.calls + second.calls,
        operators=first.operators + second.operators,
    )


def _tensor_bytes(tree: Any) -> float:
    return float(sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)))


def _attention_flops(query: Any, key: Any, value: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # torch leaves it untyped


_RELABELS = {torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default}
# torch's own table has the attention kernels of GPUs only.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
