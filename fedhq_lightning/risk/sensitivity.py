"""How much the scheme hurts a model on one batch: what the client measures for the allocator, without training.

What the server sees of it is one number a client and round. The quantized model is what the QAT lane's forward
computes, in evaluation mode, as it will be deployed: no dropout, statistics of normalization as they are.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.quantize import LaneOptions, QuantScheme, prepare
from fedhq_lightning.quantize.lanes import restore
from fedhq_lightning.risk.metrics import NoiseToSignalRatio
from fedhq_lightning.support.seeds import generators_kept

SensitivityMeasure: TypeAlias = Literal["sqnr", "loss"]
"""`sqnr`: noise-to-signal power ratio of the outputs, 10^(-SQNR / 10), at most 1. `loss`: by which share the loss
grows, at least 0. Both are 0 where quantization changes nothing."""


def check_sensitivity_measure(measure: object) -> None:
    """Refuse a measure that does not exist.

    Raises:
        ConfigurationError: Such a measure.
    """
    allowed = get_args(SensitivityMeasure)
    if measure not in allowed:
        raise ConfigurationError(
            f"unknown sensitivity measure {measure!r}; allowed are {', '.join(allowed)}{nearest(str(measure), allowed)}"
        )


def quantization_sensitivity(
    module: nn.Module,
    scheme: QuantScheme,
    run_step: Callable[[], Tensor | None],
    measure: SensitivityMeasure = "sqnr",
    options: LaneOptions | None = None,
) -> float | None:
    """How much the scheme hurts a module on one batch: two forward passes, one of them on the scheme's grid.

    Parameters, buffers, modes and random generators are left as they were, and the answer depends on none of the
    latter. What else `run_step` changes (counters, torchmetrics states) is its own affair: give it a copy then. A
    transformer encoder loses its fused path for good, as in `prepare`.

    Args:
        module: Plain, on the device where the batch lies.
        scheme: The grid.
        run_step: Runs the module that was given on the batch; returns its loss, a scalar, which only `loss` needs.
        measure: `loss`: (loss on the grid - loss) / |loss|, and 0 where that is less. `sqnr`: of everything that
            `module(...)` returns in floating point; where `run_step` never calls the module itself, the mean of the
            ratios of the quantized layers' outputs.
        options: How the QAT lane computes.

    Returns:
        The sensitivity, >= 0; None where it is no finite number: a loss or output that is none, no loss, a loss of
        zero that grows, outputs without any signal or of another shape than in floating point.

    Raises:
        ConfigurationError: Unknown measure; see `prepare`.
    """
    check_sensitivity_measure(measure)
    with _as_before(module), torch.no_grad():
        prepare(module, "qat", scheme, options)
        try:
            quantized = _run(module, scheme, run_step)
        finally:
            restore(module)
    # Apart from the other pass, so that what that one did to buffers does not reach this one.
    with _as_before(module), torch.no_grad():
        exact = _run(module, scheme, run_step)
    found = _loss_growth(quantized.loss, exact.loss) if measure == "loss" else _noise_to_signal(quantized, exact)
    return found if math.isfinite(found) else None


@dataclass
class _Recorded:
    """What one pass gave.

    Attributes:
        outputs: Floating-point outputs of the module itself, in order.
        layers: The same of its quantized layers, by name.
        loss: The loss, NaN without one.
    """

    outputs: list[Tensor] = field(default_factory=list)
    layers: dict[str, list[Tensor]] = field(default_factory=dict)
    loss: float = math.nan


def _run(module: nn.Module, scheme: QuantScheme, run_step: Callable[[], Tensor | None]) -> _Recorded:
    recorded = _Recorded()

    def record(into: list[Tensor], _module: nn.Module, _given: object, output: object) -> None:
        leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        # Copies: an activation in place would overwrite them.
        into.extend(leaf.detach().clone() for leaf in leaves if leaf.is_floating_point())

    module.eval()
    handles = [module.register_forward_hook(partial(record, recorded.outputs))]
    for name in scheme.for_layers(module):
        into = recorded.layers.setdefault(name, [])
        handles.append(module.get_submodule(name).register_forward_hook(partial(record, into)))
    try:
        loss = run_step()
    finally:
        for handle in handles:
            handle.remove()
    recorded.loss = math.nan if loss is None else float(loss)
    return recorded


def _loss_growth(quantized: float, exact: float) -> float:
    if not (math.isfinite(quantized) and math.isfinite(exact)):
        return math.nan
    growth = max(0.0, quantized - exact)
    if growth == 0.0:
        return 0.0
    return growth / abs(exact) if exact else math.inf


def _noise_to_signal(quantized: _Recorded, exact: _Recorded) -> float:
    if exact.outputs or quantized.outputs:
        return _ratio(quantized.outputs, exact.outputs)
    # Layer by layer, so that one with large outputs does not drown the others.
    ratios = [_ratio(quantized.layers[name], exact.layers[name]) for name in exact.layers if exact.layers[name]]
    return sum(ratios) / len(ratios) if ratios else math.nan


def _ratio(quantized: list[Tensor], exact: list[Tensor]) -> float:
    if [each.shape for each in quantized] != [each.shape for each in exact]:
        return math.nan
    metric = NoiseToSignalRatio()
    for noisy, target in zip(quantized, exact, strict=True):
        metric.update(noisy.cpu(), target.cpu())
    ratio = float(metric.compute())
    return min(1.0, ratio) if math.isfinite(ratio) else math.nan


@contextmanager
def _as_before(module: nn.Module) -> Iterator[None]:
    """Generators are seeded; afterwards they, the module's buffers and its modes are what they were."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, dict(part._buffers), set(part._non_persistent_buffers_set), _copies(part._buffers))
        for part in module.modules()
    ]
    devices = sorted({each.device.index for each in module.parameters() if each.device.type == "cuda"})
    try:
        with generators_kept(devices):
            yield
    finally:
        for part, was_training in modes:
            part.training = was_training
        for part, tensors, absent, values in buffers:
            part._buffers.clear()
            part._buffers.update(tensors)
            part._non_persistent_buffers_set = absent
            for name, value in values.items():
                tensors[name].copy_(value)  # type: ignore[union-attr]  # only tensors were copied


def _copies(buffers: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in buffers.items() if value is not None}
