"""What of a finished run MLflow, TensorBoard and Comet take beside its numbers: the picture of modes, and files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, TensorBoardLogger

from fedhq_lightning.report.picture_style import can_draw
from fedhq_lightning.run.run import Run
from fedhq_lightning.support.lightnings import AnyLogger, both
from fedhq_lightning.tracking.mode_picture import mode_picture

_FILES = ("recipe.yaml", "summary.json", "report.html", "allocation.svg")
MODEL, MODES = "model", "modes"


def takes_files(logger: AnyLogger) -> bool:
    """Whether `log_files` has anything to give it."""
    return isinstance(logger, both(MLFlowLogger, TensorBoardLogger, CometLogger))


def log_files(logger: AnyLogger, summary: Mapping[str, Any], run_dir: Path) -> None:
    """Give it the picture `modes`; MLflow and Comet also the folder `model`, recipe, summary, report and allocation.

    Args:
        logger: One that takes files.
        summary: Of the run.
        run_dir: The run directory, complete.
    """
    picture, step = _modes(run_dir), int(summary["rounds"])
    model = run_dir / "model"
    files = [run_dir / name for name in _FILES if (run_dir / name).is_file()]
    experiment: Any = logger.experiment  # type: ignore[attr-defined]  # each of the three has one
    if isinstance(logger, both(TensorBoardLogger)):
        if picture is not None:
            experiment.add_image(MODES, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
    elif isinstance(logger, both(MLFlowLogger)):
        run_id = logger.run_id
        if picture is not None:
            experiment.log_image(run_id, picture, artifact_file=f"{MODES}.png")
        for file in files:
            experiment.log_artifact(run_id, str(file))
        if model.is_dir():
            experiment.log_artifacts(run_id, str(model), MODEL)
    else:
        if picture is not None:
            experiment.log_image(picture, name=MODES, step=step)
        for file in files:
            experiment.log_asset(str(file), file_name=file.name)
        if model.is_dir():
            experiment.log_model(MODEL, str(model))


def _modes(run_dir: Path) -> Any | None:
    """A `PIL.Image.Image`; None where nothing can be drawn, or there are no clients to draw."""
    run = Run(run_dir)
    if not run.clients or not can_draw():
        return None
    picture, _ = mode_picture(run.clients, [record.round for record in run.rounds if record.round > 0])
    return picture
