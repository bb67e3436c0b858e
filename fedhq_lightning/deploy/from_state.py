"""The deployed model of a run: one global state, written to `model/` and evaluated as written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fedhq_lightning.deploy import ExportError
from fedhq_lightning.deploy.deployment import Deployment
from fedhq_lightning.deploy.model_folder import write_model_folder
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.views import deployed_statistics, float_view
from fedhq_lightning.types import StateDict


def deploy(
    evaluator: Evaluator,
    state: StateDict,
    loaders: Sequence[Any],
    example_args: tuple[Any, ...] | None,
    folder: Path,
    logged: Mapping[str, float] | None = None,
    held_out: str = "the held-out data",
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
    """
    module = evaluator.model(state)
    metrics: dict[str, dict[str, float]] = {"fp": {}, "quantized": {}}
    for key, value in (logged or {}).items():
        kind, _, name = key.partition("/")
        if kind in metrics:
            metrics[kind][name] = value
    return write_model_folder(
        folder,
        None if evaluator.scheme is None else evaluator.deployed(state),
        float_view(state),
        example_args,
        evaluator.scheme,
        type(module).__name__,
        evaluate=partial(metrics_of_program, evaluator, state, loaders),
        fp_metrics=metrics["fp"],
        quantized_metrics=metrics["quantized"],
        held_out=held_out,
        statistics=deployed_statistics(state),
    )


def metrics_of_program(
    evaluator: Evaluator, state: StateDict, loaders: Sequence[Any], program: nn.Module
) -> dict[str, float]:
    """Metrics with an exported program as the module's `forward`; empty if validation never calls `forward`.

    Raises:
        ExportError: The program does not take what validation gives it: other sizes than the first dimension's, or
            arguments by keyword.
    """
    module, calls = evaluator.deployed(state).cpu(), 0

    def forward(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        return program(*args, **keywords)

    module.forward = forward  # type: ignore[method-assign]  # on this copy only
    try:
        metrics = evaluator.metrics_of(module, loaders) if loaders else {}
    except Exception as error:  # a program's guards have no common type of error
        kind = type(module).__name__
        raise ExportError(f"{kind}, exported, fails on the held-out batches: {first_line(error)}") from error
    return metrics if calls else {}
