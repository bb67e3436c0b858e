"""The deployed model of a run: one global state, written to `model/` and evaluated as written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedhq_lightning.deploy import ExportError
from fedhq_lightning.deploy.deployment import Deployment
from fedhq_lightning.deploy.export import first_samples, same_outputs
from fedhq_lightning.deploy.model_folder import MOST_SAMPLES, write_model_folder
from fedhq_lightning.deploy.pixels import Pixels
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.quantize import IntegerLayer, LayerScheme
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.views import deployed_statistics, users_view
from fedhq_lightning.types import StateDict


def deploy(
    evaluator: Evaluator,
    state: StateDict,
    loaders: Sequence[Any],
    example_args: tuple[Any, ...] | None,
    folder: Path,
    logged: Mapping[str, float] | None = None,
    held_out: str = "the held-out data",
    exports: Sequence[str] = (),
    inputs: Mapping[str, Any] | None = None,
    pixels: Pixels | None = None,
) -> Deployment:
    """Write the deployed model of one global state.

    Args:
        evaluator: Converts the module.
        state: Global weights.
        loaders: Held-out batches on which the written program is evaluated; may be empty.
        example_args: Arguments of the module's `forward`, or None if unknown.
        folder: `model/`, made if needed.
        logged: `fp/NAME` and `quantized/NAME` of this state, for the folder's README.
        held_out: What the metrics are measured on, likewise.
        exports: Files beside `model.pt2`, by their names among `FORMATS`.
        inputs: What inputs and outputs stand for; see `FederatedDataModule.model_inputs`.
        pixels: What the files take in place of what `forward` takes, if that is told.
    """
    module, converted = evaluator.model(state), None
    if evaluator.scheme is not None:
        converted = evaluator.deployed(state)
        _warn_of_dynamic_ranges(converted, evaluator.scheme.for_layers(module))
    metrics: dict[str, dict[str, float]] = {"fp": {}, "quantized": {}}
    for key, value in (logged or {}).items():
        kind, _, name = key.partition("/")
        if kind in metrics:
            metrics[kind][name] = value
    return write_model_folder(
        folder,
        converted,
        users_view(state),
        example_args,
        evaluator.scheme,
        type(module).__name__,
        evaluate=partial(metrics_of_program, evaluator, state, loaders, pixels=pixels, only_new_shapes=True),
        fp_metrics=metrics["fp"],
        quantized_metrics=metrics["quantized"],
        held_out=held_out,
        exports=exports,
        inputs=inputs,
        pixels=pixels,
        statistics=deployed_statistics(state),
    )


def _warn_of_dynamic_ranges(converted: nn.Module, grids: Mapping[str, LayerScheme]) -> None:
    """Say which layers are not deployed as the scheme has them, because no client has calibrated their ranges."""
    lost = [name for name, grid in grids.items() if grid.static_range and not _is_static(converted, name)]
    if lost:
        rank_zero_warn(
            f"deployed with dynamic activation ranges: {', '.join(lost[:5])}; no client's examples reached these "
            "layers in training_step (or nothing but zeros did), so nobody has calibrated their static ranges"
        )


def _is_static(converted: nn.Module, name: str) -> bool:
    layer = converted.get_submodule(name)
    return isinstance(layer, IntegerLayer) and layer.scheme.static_range


def metrics_of_program(
    evaluator: Evaluator,
    state: StateDict,
    loaders: Sequence[Any],
    program: nn.Module,
    pixels: Pixels | None = None,
    only_new_shapes: bool = False,
) -> dict[str, float]:
    """Metrics with an exported program as the module's `forward`; empty if validation never calls `forward`.

    Args:
        evaluator: Converts the module.
        state: What the program was made from.
        loaders: Held-out batches.
        program: As read back.
        pixels: Those of the data, where the program takes them.
        only_new_shapes: Run the program on a few samples of the first batch of every shape alone, compare its bits with
            the converted module's, and have that one, which has faster kernels, compute the metrics.

    Raises:
        ExportError: The program does not take what validation gives it: other sizes than the first dimension's, or
            arguments by keyword. Or its bits are not the module's.
    """
    module, calls, seen = evaluator.deployed(state).cpu(), 0, set[tuple[Any, ...]]()
    converted = module.forward

    def forward(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        given = args
        if pixels is not None:
            given = (pixels.of(*args),)
            args = (pixels.normalized(*given),)  # what the program makes of them
        if not only_new_shapes:
            return program(*given, **keywords)
        shapes = tuple(_shape(leaf) for leaf in pytree.tree_leaves((args, keywords)))
        if shapes not in seen:
            seen.add(shapes)
            few, named = first_samples((args, keywords), MOST_SAMPLES)
            if not same_outputs(program(*first_samples(given, MOST_SAMPLES), **named), converted(*few, **named)):
                raise ExportError("it differs from the module")
        return converted(*args, **keywords)

    module.forward = forward  # type: ignore[method-assign]  # on this copy only
    try:
        metrics = evaluator.metrics_of(module, loaders) if loaders else {}
    except Exception as error:  # a program's guards have no common type of error
        kind = type(module).__name__
        raise ExportError(f"{kind}, exported, fails on the held-out batches: {first_line(error)}") from error
    return metrics if calls else {}


def _shape(leaf: Any) -> Any:
    """What a program is made for, of one argument: not the number of samples."""
    return leaf.shape[1:] if isinstance(leaf, Tensor) else repr(leaf)
