"""Train any LightningModule in the fp, PTQ or QAT lane of `lightning.pytorch.Trainer`, and deploy it quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from fedhq_lightning.drop_in.deployed_model import model_file, write_model
from fedhq_lightning.drop_in.deployed_statistics import RetakenStatistics
from fedhq_lightning.drop_in.lane_swap import Lane, has_lazy_layers, refuse_unsupported
from fedhq_lightning.drop_in.quantized_callback import QuantizedCallback, plain_scheme
from fedhq_lightning.drop_in.trainer_parts import callbacks_of
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.support.memory import keep_freed_memory
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.types import MODES, Mode


class QuantizedTraining(QuantizedCallback):
    """Trains in the lane of one mode, reports the quantized model beside the fp one, and writes the former at the end.

    Validation and test run as without it, on the fp model; for every `NAME` that the module logs there,
    `quantized/NAME` is the same metric of the model as it will be deployed. Checkpoints, `ModelCheckpoint` and
    `EarlyStopping` may monitor it. Checkpoints hold what they hold without this callback, and a few plain values.

    The deployed model has the weights that the module has when `fit` ends, as averaged by `WeightAveraging` if that is
    used. For those of a checkpoint, see `deploy`.

    Args:
        mode: `qat` trains with the scheme's grid in the forward pass; `ptq` in int8 arithmetic, blind to the grid;
            `fp` as without this callback, so that only the result is quantized.
        scheme: The grid of the deployed model: `w4a8`, `w8a8`, `w3a8-g32`, or a `QuantScheme`.
        lanes: How the lanes compute; None is `LaneOptions()`.
        export: Write the deployed model when `fit` ends.
        dirpath: Its folder; None is `model` beside ModelCheckpoint's `checkpoints`.

    Raises:
        ConfigurationError: An unknown mode, a scheme that cannot be read, or options that only a federation has.

    Attributes:
        deployed_path: The file of the deployed model, once it is written; the process that calls a strategy which
            spawns others does not learn it.

    Example::

        trainer = L.Trainer(max_epochs=10, callbacks=[QuantizedTraining("qat", "w4a8")])
        trainer.fit(module, datamodule)
    """

    def __init__(
        self,
        mode: Mode = "qat",
        scheme: str | QuantScheme = "w4a8",
        lanes: LaneOptions | None = None,
        export: bool = True,
        dirpath: str | Path | None = None,
    ) -> None:
        if mode not in MODES:
            raise ConfigurationError(f"mode {mode!r}: allowed are {', '.join(MODES)}{nearest(str(mode), MODES)}")
        if lanes is not None and lanes.bias_correction:
            raise ConfigurationError(
                "lanes.bias_correction corrects what a client of a federation sends; leave it out of QuantizedTraining"
            )
        parsed = QuantScheme.parse(scheme)
        super().__init__(parsed, export, dirpath)
        self._statistics: RetakenStatistics = RetakenStatistics(parsed)
        self.mode = mode
        self.lanes = lanes
        self._lane = Lane(mode, parsed, lanes)
        self._is_training = False

    @property
    def state_key(self) -> str:
        """One key whatever the arguments are, so that a resumed run finds what the first was trained with."""
        return "QuantizedTraining"

    def state_dict(self) -> dict[str, Any]:
        """Mode and scheme, in plain values, and batch statistics of the quantized model."""
        return {**self._settings(), "statistics": self._statistics.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed fit goes on as it began; evaluating a checkpoint under another scheme is fine.

        Raises:
            ConfigurationError: It was trained in another mode or for another scheme.
        """
        if self._is_fitting:
            self._refuse_other_settings(state_dict, self._settings())
        if "statistics" in state_dict:  # not in checkpoints of 0.2
            self._statistics.load_state_dict(state_dict["statistics"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything is trained or loaded."""
        self._is_fitting = stage == "fit"
        if stage == "predict":
            return
        self._refuse_companions(trainer)
        refuse_unsupported(trainer, pl_module)
        self._lane.leave(pl_module)
        self._begin(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the layers, which are complete by now."""
        refuse_unsupported(trainer, pl_module, self.scheme)
        self._lane.check(pl_module)
        if pl_module.device.type == "cpu":
            keep_freed_memory()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enter the lane."""
        self._is_training = True
        self._enter(pl_module)
        self._record_arguments(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch for the statistics; enter the lane after the first one where that built lazy layers."""
        self._statistics.see(pl_module, batch, batch_idx)
        if not self._lane.is_entered:
            self._enter(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the lane: Lightning's loop evaluates the fp model."""
        self._lane.leave(pl_module)
        self._statistics.retake(trainer, pl_module)
        super().on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on in the lane."""
        super().on_validation_end(trainer, pl_module)
        if self._is_training:
            self._enter(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take batch statistics of the quantized model."""
        self._statistics.retake(trainer, pl_module)
        super().on_test_start(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take batch statistics of the quantized model, and write it."""
        self._statistics.retake(trainer, pl_module)
        super().on_fit_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the lane for good."""
        self._stop(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the lane, whatever happened."""
        self._stop(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the lane where a fit ended in another way, as that of a tuner."""
        self._stop(pl_module)

    def deploy(self, pl_module: pl.LightningModule, dirpath: str | Path) -> Path:
        """Write the deployed model of any weights of the module that was trained, such as a checkpoint's.

        Args:
            pl_module: For example `Module.load_from_checkpoint(checkpoint_callback.best_model_path)`.
            dirpath: Folder to write, made if needed.

        Returns:
            The model's file.

        Raises:
            ConfigurationError: The scheme does not fit the module, or the folder cannot be written.
        """
        assert self.scheme is not None
        folder = expand_path(dirpath, "dirpath")
        own_statistics = self._statistics.alone(pl_module)
        write_model(pl_module, self.scheme, folder, self._example_args(pl_module), statistics=own_statistics)
        return model_file(folder)

    def _settings(self) -> dict[str, Any]:
        return {"mode": self.mode, **plain_scheme(self.scheme)}

    def _refuse_companions(self, trainer: pl.Trainer) -> None:
        names = {kind.__name__ for callback in callbacks_of(trainer) for kind in type(callback).__mro__}
        if "FederatedAveraging" in names:
            raise ConfigurationError(
                "QuantizedTraining together with FederatedAveraging: the latter puts every silo into the lane that its "
                "allocator chose; leave QuantizedTraining out and give FederatedAveraging the scheme"
            )

    def _enter(self, pl_module: pl.LightningModule) -> None:
        if not has_lazy_layers(pl_module):
            self._lane.enter(pl_module)

    def _stop(self, pl_module: pl.LightningModule) -> None:
        self._is_training = False
        self._lane.leave(pl_module)
        self._stop_reporting()
