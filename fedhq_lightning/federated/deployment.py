"""The folder `model/`: the deployed model, its weights, and how to load them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import safetensors.torch
import torch

from fedhq_lightning.federated.evaluation import Evaluator
from fedhq_lightning.files import write_atomically
from fedhq_lightning.quantize import ExportError, export_program, save_packed
from fedhq_lightning.quantize.export import first_line
from fedhq_lightning.types import StateDict

_README = """# {name}, {scheme}

{what}

`weights.safetensors` holds the float32 weights of the same round, for further training:

```python
from safetensors.torch import load_file

module.load_state_dict(load_file("weights.safetensors"))
```
"""

_PROGRAM = """`model.pt2` is the model in integer arithmetic. It runs with torch {torch} alone:

```python
import torch

model = torch.export.load("model.pt2").module()
outputs = model(inputs)  # {inputs}, any batch size
```"""

_PACKED = """`model.safetensors` holds packed integers and scales. There is no `model.pt2`: {reason}.

```python
from fedhq_lightning.quantize import load_packed

model = load_packed("model.safetensors", module)  # module: a new instance of {name}
```"""

_FLOAT = "The run had no scheme: the model is float32."


@dataclass(frozen=True)
class Deployment:
    """What was written.

    Attributes:
        export: "model.pt2", "packed", or "float32" for a run without a scheme.
        reason: Why there is no `model.pt2`, or empty.
        metrics: What the module logs with the written program in place of its `forward`; empty where it was not used.
    """

    export: str
    reason: str
    metrics: dict[str, float]


def deploy(
    evaluator: Evaluator, state: StateDict, loaders: Sequence[Any], example_args: tuple[Any, ...] | None, folder: Path
) -> Deployment:
    """Write the deployed model of one global state.

    Args:
        evaluator: Converts the module.
        state: Global weights.
        loaders: Held-out batches on which the written program is evaluated; may be empty.
        example_args: Arguments of the module's `forward`, or None if unknown.
        folder: `model/`, made if needed.
    """
    folder.mkdir(exist_ok=True)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    write_atomically(folder / "weights.safetensors", safetensors.torch.save(weights))
    module = evaluator.model(state)
    name, scheme = type(module).__name__, evaluator.scheme
    if scheme is None:
        _write_readme(folder, name, "float32", _FLOAT)
        return Deployment("float32", "", {})
    module, path = evaluator.deployed(state).cpu(), folder / "model.pt2"
    try:
        example_args = _example(module, example_args)
        export_program(module, example_args, path)
        metrics = _metrics_of_program(evaluator, state, loaders, path)
    except ExportError as error:
        path.unlink(missing_ok=True)
        save_packed(module, folder / "model.safetensors")
        _write_readme(folder, name, str(scheme), _PACKED.format(name=name, reason=error))
        return Deployment("packed", str(error), {})
    _write_readme(folder, name, str(scheme), _program_text(example_args))
    return Deployment("model.pt2", "", metrics)


def _metrics_of_program(evaluator: Evaluator, state: StateDict, loaders: Sequence[Any], path: Path) -> dict[str, float]:
    """Metrics with the file's program as the module's `forward`; empty if validation never calls `forward`.

    Raises:
        ExportError: The program does not take what validation gives it: other sizes than the first dimension's, or
            arguments by keyword.
    """
    module, program, calls = evaluator.deployed(state).cpu(), torch.export.load(path).module(), 0

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


def _example(module: L.LightningModule, example_args: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The arguments given, or the module's own example, on the CPU."""
    if example_args is None:
        example_args = _as_arguments(module.example_input_array)
    if example_args is None:
        raise ExportError("validation_step does not call its forward by position, and it has no example_input_array")
    return tuple(each.cpu() if isinstance(each, torch.Tensor) else each for each in example_args)


def _program_text(example_args: tuple[Any, ...]) -> str:
    shapes = ", ".join(
        f"{str(each.dtype).removeprefix('torch.')} of shape (batch, {', '.join(map(str, each.shape[1:]))})"
        for each in example_args
        if isinstance(each, torch.Tensor)
    )
    return _PROGRAM.format(torch=torch.__version__.split("+")[0], inputs=shapes)


def _as_arguments(example: Any) -> tuple[Any, ...] | None:
    if example is None or isinstance(example, dict):
        return None
    return example if isinstance(example, tuple) else (example,)


def _write_readme(folder: Path, name: str, scheme: str, what: str) -> None:
    write_atomically(folder / "README.md", _README.format(name=name, scheme=scheme, what=what))
