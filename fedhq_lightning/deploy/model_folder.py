"""The folder `model/`: a deployed model, its weights, a loader that needs torch alone, and what to know about them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedhq_lightning.deploy import ExportError, export_program, model_readme, save_packed
from fedhq_lightning.deploy.deployment import Deployment
from fedhq_lightning.deploy.export import batch_size, first_samples, packed_size
from fedhq_lightning.deploy.formats import FORMATS, write_formats
from fedhq_lightning.deploy.model_to_write import ModelToWrite
from fedhq_lightning.deploy.pixels import Pixels
from fedhq_lightning.deploy.written_file import Agreement, WrittenFile
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.atomic_files import remove_leftovers, told_to_user, write_atomically
from fedhq_lightning.types import StateDict

PROGRAM = "model.pt2"
PACKED = "model.safetensors"
WEIGHTS = "weights.safetensors"
STATISTICS = "deployed_statistics.safetensors"
LOADER = "load_model.py"
README = "README.md"

MOST_SAMPLES = 64
"""That a program is tried and timed on: on some processors torch's integer products are slow."""
_MOST_COMPARED = 512
"""Samples that the other files are compared on."""

Evaluate = Callable[[nn.Module], Mapping[str, float]]


def write_model_folder(
    folder: Path,
    converted: L.LightningModule | None,
    weights: StateDict,
    example_args: tuple[Any, ...] | None,
    scheme: QuantScheme | None,
    name: str,
    *,
    exports: Sequence[str] = (),
    inputs: Mapping[str, Any] | None = None,
    pixels: Pixels | None = None,
    evaluate: Evaluate | None = None,
    fp_metrics: Mapping[str, float] | None = None,
    quantized_metrics: Mapping[str, float] | None = None,
    held_out: str = "the held-out data",
    statistics: StateDict | None = None,
) -> Deployment:
    """Write a model so that it can be used without this package.

    `weights.safetensors` (float32) and `README.md` always; `model.pt2` with `load_model.py` and the files of `exports`,
    or, where torch cannot export the module, `model.safetensors` (packed integers and scales). Files of another kind
    that an earlier call left, and parts of files that a killed one left, are removed.

    Args:
        folder: Made if needed; its parent exists.
        converted: What `fedhq_lightning.quantize.convert` returned, or None for a model that stays float32.
        weights: The module's state before conversion; any device.
        example_args: Arguments of the module's `forward`, the first dimension of tensors being the batch; None: the
            module's `example_input_array`.
        scheme: Grid of `converted`; None if that is None.
        name: What the model is called, by custom its class.
        exports: Further files, by their names among `FORMATS`.
        inputs: What inputs and outputs stand for, for the files' metadata; see `FederatedDataModule.model_inputs`.
        pixels: What the files take in place of what `forward` takes, if that is told.
        evaluate: Called with the program as read back; its metrics on held-out data. An ExportError of it means
            that the program is of no use, and the model is packed instead.
        fp_metrics: Metrics of the float32 weights by name, for the README.
        quantized_metrics: Those of `converted`, for the README, where `evaluate` gives none.
        held_out: What the metrics were measured on.
        statistics: What `converted` has of its own, BatchNorm statistics where the float32 weights have others and
            static activation ranges; written beside them, to convert them again.

    Raises:
        ConfigurationError: Nothing in `converted` is quantized, or a file cannot be written.
    """
    with told_to_user(folder):
        folder.mkdir(exist_ok=True)
        # The README too: it is the last to be written, and tells nothing of what is half written.
        for file in (PROGRAM, PACKED, STATISTICS, LOADER, README, *(form.file for form in FORMATS.values())):
            (folder / file).unlink(missing_ok=True)
        _remove_litter(folder)
    write_atomically(folder / WEIGHTS, _as_bytes(weights))
    if statistics:
        write_atomically(folder / STATISTICS, _as_bytes(statistics))
    deployment = _write_model(folder, converted, example_args, evaluate, exports, str(scheme), name, inputs, pixels)
    text = model_readme.text(
        folder,
        name,
        None if scheme is None else str(scheme),
        deployment,
        fp_metrics or {},
        deployment.metrics or quantized_metrics or {},
        held_out,
        leaves_out=converted is not None and not converted.strict_loading,
    )
    write_atomically(folder / README, text)
    return deployment


def _as_bytes(state: StateDict) -> bytes:
    return safetensors.torch.save({key: value.detach().cpu().contiguous().clone() for key, value in state.items()})


def _remove_litter(folder: Path) -> None:
    for path in folder.glob(".export-*"):
        shutil.rmtree(path, ignore_errors=True)
    remove_leftovers(folder)


def _write_model(
    folder: Path,
    converted: L.LightningModule | None,
    example_args: tuple[Any, ...] | None,
    evaluate: Evaluate | None,
    exports: Sequence[str],
    scheme: str,
    name: str,
    inputs: Mapping[str, Any] | None,
    pixels: Pixels | None,
) -> Deployment:
    if converted is None:
        return Deployment("float32", "", {})
    converted, path = converted.cpu(), folder / PROGRAM
    try:
        model = ModelToWrite(converted, _example(converted, example_args), name, scheme, inputs=inputs)
        model = model if pixels is None else model.taking(pixels)
        few = first_samples(model.example_args, MOST_SAMPLES)
        program = export_program(model.converted, few, path, model.facts())
        metrics = dict(evaluate(program)) if evaluate is not None else {}
    except ExportError as error:
        path.unlink(missing_ok=True)
        save_packed(converted, folder / PACKED)
        missing = [(PROGRAM, "torch"), *((FORMATS[each].file, FORMATS[each].runtime) for each in exports)]
        files = [WrittenFile(file, runtime, reason=str(error)) for file, runtime in missing]
        files.append(WrittenFile(PACKED, "fedhq_lightning", (folder / PACKED).stat().st_size))
        return Deployment("packed", str(error), {}, tuple(files), packed_bytes=packed_size(converted))
    write_atomically(folder / LOADER, model_readme.loader(path.read_bytes()))
    model = replace(model, metrics=metrics)
    with torch.no_grad():
        output = model.converted(*model.example_args)  # of which export_program has seen that the program has the bits
    same = Agreement.between(output, output, batch_size(model.example_args))
    written = WrittenFile(PROGRAM, "torch", path.stat().st_size, same, program=program)
    files = [written, *write_formats(exports, model, folder)]
    return Deployment(PROGRAM, "", metrics, tuple(files), model, packed_size(converted))


def _example(module: L.LightningModule, example_args: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The arguments given, or the module's own example, of not too many samples, on the CPU."""
    if example_args is None:
        example_args = _as_arguments(module.example_input_array)
    if example_args is None:
        raise ExportError("validation_step does not call its forward by position, and it has no example_input_array")
    on_cpu: tuple[Any, ...] = pytree.tree_map_only(Tensor, Tensor.cpu, first_samples(example_args, _MOST_COMPARED))
    return on_cpu


def _as_arguments(example: Any) -> tuple[Any, ...] | None:
    if example is None or isinstance(example, dict):
        return None
    return example if isinstance(example, tuple) else (example,)
