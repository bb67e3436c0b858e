"""Train any LightningModule in the fp, PTQ or QAT lane of `lightning.pytorch.Trainer`, and deploy it quantized."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.host_memory import keep_freed_memory
from fedhq_lightning.in_trainer.copies import ForwardRecorder
from fedhq_lightning.in_trainer.deployment import described_sizes, model_file, model_folder, write_deployed, write_model
from fedhq_lightning.in_trainer.lanes import Lane, has_lazy_layers, refuse_unsupported
from fedhq_lightning.in_trainer.quantized_validation import QuantizedValidation
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.types import MODES, Mode


class QuantizedTraining(pl.Callback):
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
        self.mode = mode
        self.scheme = QuantScheme.parse(scheme)
        self.lanes = lanes
        self.export = export
        self.dirpath = dirpath
        self.deployed_path: Path | None = None
        self._lane = Lane(mode, self.scheme, lanes)
        self._validation = QuantizedValidation(self.scheme)
        self._folder: Path | None = None
        self._recorder: ForwardRecorder | None = None
        self._is_fitting = False
        self._is_training = False
        self._reported: tuple[int, dict[str, float]] = (-1, {})

    @property
    def state_key(self) -> str:
        """The same for all arguments, so that a resumed run finds what the first was trained with."""
        return "QuantizedTraining"

    def state_dict(self) -> dict[str, Any]:
        """Mode and scheme, in plain values."""
        return {"mode": self.mode, **_plain(self.scheme)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed fit goes on as it began; evaluating a checkpoint under another scheme is fine.

        Raises:
            ConfigurationError: It was trained in another mode or for another scheme.
        """
        if not self._is_fitting:
            return
        for name, given in self.state_dict().items():
            if state_dict.get(name) != given:
                raise ConfigurationError(
                    f"the checkpoint was trained with QuantizedTraining {name} {state_dict.get(name)!r}, this run has "
                    f"{given!r}; give it the same to resume, or start a new fit without ckpt_path from the weights "
                    "that load_from_checkpoint gives"
                )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything is trained or loaded."""
        self._is_fitting = stage == "fit"
        if stage == "predict":
            return
        self._refuse_companions(trainer)
        refuse_unsupported(trainer, pl_module)
        self._lane.leave(pl_module)
        if self._is_fitting:
            self._folder = model_folder(trainer, self.dirpath)
            self._reported = (-1, {})
            self._validation = QuantizedValidation(self.scheme)
            self._recorder = None

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
        if self._validation.example_args is None and pl_module._compiler_ctx is None:
            self._recorder = ForwardRecorder(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Enter the lane after the first batch where that built lazy layers."""
        if not self._lane.is_entered:
            self._enter(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the lane: Lightning's loop evaluates the fp model."""
        self._lane.leave(pl_module)
        self._validation.start()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the batch."""
        self._validation.batch_start(trainer, pl_module, "validation", batch)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate the quantized model on the same batch."""
        self._validation.batch_end(trainer, batch_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `quantized/NAME`."""
        self._validation.epoch_end(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on in the lane."""
        self._reported = trainer.global_step, {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self._is_training:
            self._enter(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an evaluation that was interrupted."""
        self._validation.start()

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the batch."""
        self._validation.batch_start(trainer, pl_module, "test", batch)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate the quantized model on the same batch."""
        self._validation.batch_end(trainer, batch_idx)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `quantized/NAME`."""
        self._validation.epoch_end(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the lane for good."""
        self._stop(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the deployed model."""
        if not self.export:
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning outside the class
            self._rehearse_export(trainer, pl_module)
            return
        assert self._folder is not None
        step, metrics = self._reported
        metrics = metrics if step == trainer.global_step else {}
        self.deployed_path = write_deployed(
            trainer, pl_module, self.scheme, self._folder, self._example_args(pl_module), metrics
        )
        rank_zero_info(
            f"QuantizedTraining: {self.scheme} model written to {self._folder}: {described_sizes(self._folder)}"
        )

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
        write_model(pl_module, self.scheme, Path(dirpath), self._example_args(pl_module))
        return model_file(Path(dirpath))

    def _refuse_companions(self, trainer: pl.Trainer) -> None:
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # likewise
        names = {kind.__name__ for callback in callbacks for kind in type(callback).__mro__}
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
        self._validation.start()
        if self._recorder is not None:
            self._recorder.remove()

    def _example_args(self, pl_module: pl.LightningModule) -> tuple[Any, ...] | None:
        """An example that the module names itself, as None, wins over one that was seen."""
        if pl_module.example_input_array is not None:
            return None
        seen = None if self._recorder is None else self._recorder.arguments
        return self._validation.example_args or seen

    def _rehearse_export(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with TemporaryDirectory(prefix="fedhq-") as folder:
            path = write_deployed(
                trainer, pl_module, self.scheme, Path(folder) / "model", self._example_args(pl_module)
            )
        rank_zero_info(f"QuantizedTraining: fast_dev_run, so {path.name} was written and thrown away")


def _plain(scheme: QuantScheme) -> dict[str, Any]:
    overrides = None if scheme.overrides is None else dict(scheme.overrides)
    return {"scheme": scheme.scheme, "edge_bits": scheme.edge_bits, "overrides": overrides}
