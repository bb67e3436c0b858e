"""The folder of the deployed model that a callback of `lightning.pytorch.Trainer` leaves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from fedhq_lightning.deploy.model_folder import WEIGHTS, write_model_folder
from fedhq_lightning.drop_in.copies import converted_copy, plain_state
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.atomic_files import told_to_user
from fedhq_lightning.types import StateDict


def model_folder(trainer: pl.Trainer, dirpath: str | Path | None = None) -> Path:
    """Where the deployed model goes; to be called on every process.

    Args:
        trainer: Its first logger's folder for this version is taken, beside that of `ModelCheckpoint`, or its
            `default_root_dir`.
        dirpath: The user's choice, if any.

    Returns:
        `dirpath`, or `model` in the trainer's folder; the same on every process.
    """
    if dirpath is not None:
        return Path(dirpath)
    folder = str(trainer.default_root_dir)
    if trainer.loggers:
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = os.path.join(logger.save_dir or folder, str(logger.name), version)
    return Path(trainer.strategy.broadcast(folder)) / "model"


def write_deployed(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    scheme: QuantScheme,
    folder: Path,
    example_args: tuple[Any, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
    statistics: StateDict | None = None,
) -> Path:
    """Convert the module's weights to the scheme's grid and write them; to be called on every process.

    Args:
        trainer: Process zero of it writes, the others wait.
        pl_module: Plain or in a lane; it stays as it is.
        scheme: The deployment grid.
        folder: `model.pt2` (or `model.safetensors` where torch cannot export the module), its loader,
            `weights.safetensors` in float32, and a README. Made if needed.
        example_args: Positional arguments of one forward call; None: the module's `example_input_array`.
        metrics: For the README: `NAME` of the fp and `quantized/NAME` of the deployed model.
        statistics: Batch statistics of the deployed model, where it has others than the module.

    Returns:
        The model's file in `folder`.

    Raises:
        ConfigurationError: The folder cannot be written, or the scheme does not fit.
    """
    if trainer.is_global_zero:
        write_model(pl_module, scheme, folder, example_args, metrics, statistics)
    trainer.strategy.barrier("fedhq_deployed")
    return model_file(folder)


def write_model(
    pl_module: pl.LightningModule,
    scheme: QuantScheme,
    folder: Path,
    example_args: tuple[Any, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
    statistics: StateDict | None = None,
) -> None:
    """What `write_deployed` does, on this process alone and without a trainer."""
    with told_to_user(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    metrics = metrics or {}
    write_model_folder(
        folder,
        converted_copy(pl_module, scheme, statistics),
        plain_state(pl_module),
        example_args,
        scheme,
        type(pl_module).__name__,
        fp_metrics={name: value for name, value in metrics.items() if f"quantized/{name}" in metrics},
        quantized_metrics={
            name.removeprefix("quantized/"): value for name, value in metrics.items() if name.startswith("quantized/")
        },
        held_out="the validation data of the Trainer",
        statistics=statistics,
    )


def model_file(folder: Path) -> Path:
    """The deployed model in a folder, whichever kind it is."""
    program = folder / "model.pt2"
    return program if program.exists() else folder / "model.safetensors"


def described_sizes(folder: Path) -> str:
    """`model.pt2 of 81.2 kB (its weights in fp32: 329.1 kB)`, from the files."""
    file = model_file(folder)
    return f"{file.name} of {_size(file)} (its weights in fp32: {_size(folder / WEIGHTS)})"


def _size(file: Path) -> str:
    size = float(file.stat().st_size)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.{0 if unit == 'bytes' else 1}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
