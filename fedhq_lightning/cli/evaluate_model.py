"""`fedhq eval`: a deployed model beside its float32 weights, on a recipe's held-out data and this host's CPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fedhq_lightning.cli.evaluation_tables import Evaluation, print_evaluation
from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.deploy import ExportError, load_packed
from fedhq_lightning.deploy.export import first_samples, packed_size
from fedhq_lightning.deploy.formats import float_forms, read_program
from fedhq_lightning.deploy.from_state import metrics_of_program
from fedhq_lightning.deploy.model_files import ModelFiles, find_files, read_weights, recipe_of
from fedhq_lightning.deploy.model_folder import MOST_SAMPLES
from fedhq_lightning.deploy.model_to_write import ModelToWrite
from fedhq_lightning.deploy.pixels import PIXELS, Pixels
from fedhq_lightning.deploy.speed import measure_inference
from fedhq_lightning.deploy.written_file import Agreement
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import checks, parts
from fedhq_lightning.federated.clients import client_to_probe, plain_client_ids
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.local.data_hooks import prepare_data, prepared
from fedhq_lightning.local.template import set_up_template
from fedhq_lightning.quantize import attach_ranges
from fedhq_lightning.support.arithmetic import reproducible
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.trainer import FederatedTrainer


def evaluate_model(
    model: Path, recipe: str | None = None, overrides: Sequence[str] = (), trust: bool = False
) -> Evaluation:
    """Evaluate, measure and print.

    Args:
        model: A run directory, its `model/`, or a file of a deployed model.
        recipe: A shipped recipe's name or a file; default: the run's own.
        overrides: As `fedhq run` takes them.
        trust: Load a program with anything in it, and run that.

    Raises:
        ConfigurationError: No model there, a damaged file, a program with more in it than this package writes, no
            recipe, a recipe that `fedhq run` would refuse, or one of another model.
    """
    files = find_files(model)
    name, text = recipe_of(files, recipe)
    resolved = resolve(name, text, overrides)
    with resolved.keys_named():
        trainer, module, datamodule = resolved.instantiate()
    with reproducible(trainer.settings.threads, trainer.fabric.device), prepared(datamodule, "validate"):
        template = set_up_template(
            module, trainer.settings.fit_options, lambda: _training_batch(datamodule), datamodule
        )
        loaders = checks.validation_loaders(template, datamodule)
        if not loaders:
            raise ConfigurationError(f"{type(module).__name__} has no validation_step; add one that logs a metric")
        found = _evaluate(files, trainer, template, datamodule, loaders, name, trust)
    print_evaluation(found, trainer.settings.threads)
    return found


def _training_batch(datamodule: FederatedDataModule) -> Any:
    """What lazy layers learn their sizes from, as at the start of the run."""
    prepare_data(datamodule, "fit")
    return datamodule.calibration_batch(client_to_probe(datamodule, plain_client_ids(datamodule.client_ids)))


def _evaluate(
    files: ModelFiles,
    trainer: FederatedTrainer,
    template: L.LightningModule,
    datamodule: FederatedDataModule,
    loaders: Sequence[Any],
    recipe: str,
    trust: bool,
) -> Evaluation:
    if trainer.settings.scheme is not None:
        attach_ranges(template, trainer.settings.scheme)
    evaluator = parts.evaluator_of(trainer.settings, trainer.fabric, template, Processes(None), datamodule)
    kind = type(template).__name__
    state = template.state_dict() if files.weights is None else read_weights(files.weights, template, recipe)
    deployed: Path | None = files.program or files.packed
    if deployed is not None and evaluator.scheme is None:
        raise ConfigurationError(f"recipe {recipe} has no scheme, but {deployed.name} is quantized: not its model")
    fp_metrics, example_args = dict[str, float](), None
    plain = evaluator.model(state)
    if files.weights is not None:
        recorder = checks.ForwardRecorder(plain)
        fp_metrics = evaluator.metrics_of(plain, loaders, autocast=trainer.fabric.autocast)
        example_args = recorder.arguments
    metrics, program, pixels = dict[str, float](), None, None
    if files.program is not None:
        program = _read_program(files.program, trust)
        pixels = _pixels_taken(program, files.program.name, datamodule)
        try:
            metrics = metrics_of_program(evaluator, state, loaders, program, pixels)
        except ExportError as error:
            wanted = f"the {kind} of recipe {recipe}"
            raise ConfigurationError(f"{files.program.name} does not do what {wanted} does: {error}") from error
    elif files.packed is not None:
        metrics = evaluator.metrics_of(load_packed(files.packed, template), loaders)
    inference, agreement, is_conversion = None, None, None
    if files.program and program is not None and files.weights is not None and example_args is not None:
        few = first_samples(example_args, MOST_SAMPLES)
        few = pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, few)
        made = ModelToWrite(evaluator.deployed(state).cpu(), few, kind, str(evaluator.scheme))
        if pixels is not None:
            made = made.taking(pixels)
            pixels.put_before(plain, few[0].dim())
        with suppress(ExportError):
            agreement = Agreement.of(program, made.converted, made.example_args)
        is_conversion = agreement is not None and (agreement.bit_equal == 1 or not files.program.name.endswith(".pt2"))
        forms = {"fp32 in torch": plain.cpu(), **float_forms(made, [files.program.name])}
        inference = measure_inference(forms, {files.program.name: program}, made.example_args)
        inference |= {"fp32_bytes": files.weights.stat().st_size, "int8_bytes": files.program.stat().st_size}
        inference["packed_bytes"] = packed_size(made.converted) if is_conversion else None
    return Evaluation(
        kind,
        None if evaluator.scheme is None else str(evaluator.scheme),
        None if deployed is None else deployed.name,
        fp_metrics,
        metrics,
        inference,
        is_conversion,
        agreement,
    )


def _pixels_taken(program: nn.Module, name: str, datamodule: FederatedDataModule) -> Pixels | None:
    """Those of the data where a program takes pixels; None where it takes what the module's `forward` takes."""
    if getattr(program, "facts", {}).get("takes") != PIXELS:
        return None
    try:
        return Pixels.told_by(datamodule.model_inputs())
    except ConfigurationError as error:
        raise ConfigurationError(f"{name} takes pixels, but {error}") from error


def _read_program(file: Path, trust: bool) -> nn.Module:
    with libraries_quiet("torch.export", level=logging.CRITICAL):  # which shows the traceback
        return read_program(file, trust)
