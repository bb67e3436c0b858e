"""What the callbacks for `lightning.pytorch.Trainer` share: they report the quantized model, and leave it behind."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from fedhq_lightning.drop_in.copies import ForwardRecorder
from fedhq_lightning.drop_in.deployed_model import described_sizes, model_folder, write_deployed
from fedhq_lightning.drop_in.deployed_statistics import DeployedStatistics
from fedhq_lightning.drop_in.quantized_validation import QuantizedValidation
from fedhq_lightning.drop_in.trainer_callback import TrainerCallback
from fedhq_lightning.drop_in.trainer_parts import is_rehearsal
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.paths import expand_if_given


def refuse_static_ranges(name: str, scheme: QuantScheme | None) -> None:
    """Refuse a scheme whose activation ranges are found in training, which only `FederatedTrainer` does.

    Raises:
        ConfigurationError: Such a scheme.
    """
    if scheme is not None and scheme.has_static_ranges:
        raise ConfigurationError(
            f"{name}: scheme '{scheme}' has static activation ranges, which only FederatedTrainer calibrates and "
            "learns; take dynamic ranges here (leave the s after the activation bits out, in overrides too), or train "
            "with FederatedTrainer"
        )


class QuantizedCallback(TrainerCallback):
    """Logs `quantized/NAME` beside what validation and test log, and writes the deployed model when `fit` ends.

    Args:
        scheme: The grid of the deployed model; None neither logs nor writes.
        export: Whether to write it.
        dirpath: Its folder; None is `model` beside ModelCheckpoint's `checkpoints`.

    Attributes:
        deployed_path: The file of the deployed model, once it is written.
    """

    def __init__(self, scheme: QuantScheme | None, export: bool, dirpath: str | Path | None) -> None:
        refuse_static_ranges(type(self).__name__, scheme)
        self.scheme = scheme
        self.export = export
        self.dirpath = expand_if_given(dirpath, "dirpath")
        self.deployed_path: Path | None = None
        self._is_fitting = False
        self._folder = Path()
        self._validation: QuantizedValidation | None = None
        self._recorder: ForwardRecorder | None = None
        self._statistics = DeployedStatistics()
        self._reported: tuple[int, dict[str, float]] = (-1, {})

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an evaluation that was interrupted."""
        if self._validation is not None:
            self._validation.start()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the batch, which the quantized copy evaluates too."""
        if self._validation is not None:
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
        if self._validation is not None:
            self._validation.batch_end(trainer, batch_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `quantized/NAME`."""
        if self._validation is not None:
            self._validation.epoch_end(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the metrics for the deployed model's README."""
        self._reported = trainer.global_step, {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an evaluation that was interrupted."""
        if self._validation is not None:
            self._validation.start()

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the batch, which the quantized copy evaluates too."""
        if self._validation is not None:
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
        if self._validation is not None:
            self._validation.batch_end(trainer, batch_idx)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `quantized/NAME`."""
        if self._validation is not None:
            self._validation.epoch_end(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the deployed model; a rehearsal only finds out whether it can be written."""
        if not self.export or self.scheme is None:
            return
        example, own_statistics = self._example_args(pl_module), self._statistics.of(pl_module)
        if is_rehearsal(trainer):
            with TemporaryDirectory(prefix="fedhq-") as folder:
                place = Path(folder) / "model"
                path = write_deployed(trainer, pl_module, self.scheme, place, example, None, own_statistics)
            rank_zero_info(f"{self.state_key}: fast_dev_run, so {path.name} was written and thrown away")
            return
        step, metrics = self._reported
        metrics = metrics if step == trainer.global_step else {}
        self.deployed_path = write_deployed(
            trainer, pl_module, self.scheme, self._folder, example, metrics, own_statistics
        )
        sizes = described_sizes(self._folder)
        rank_zero_info(f"{self.state_key}: {self.scheme} model written to {self._folder}: {sizes}")

    def _begin(self, trainer: pl.Trainer) -> None:
        """Be ready to report, in `setup`; a fit begins anew."""
        if self.scheme is not None and (self._is_fitting or self._validation is None):
            self._validation = QuantizedValidation(self.scheme, self._statistics)
        if self._is_fitting:
            self._folder = model_folder(trainer, self.dirpath)
            self._reported = (-1, {})
            self._recorder = None

    def _record_arguments(self, pl_module: pl.LightningModule) -> None:
        """Listen for an example that the export needs, where the sanity check has shown none."""
        if self._validation is None or self._validation.example_args is not None:
            return
        if pl_module._compiler_ctx is None:
            self._recorder = ForwardRecorder(pl_module)

    def _stop_reporting(self) -> None:
        if self._validation is not None:
            self._validation.start()
        if self._recorder is not None:
            self._recorder.remove()

    def _example_args(self, pl_module: pl.LightningModule) -> tuple[Any, ...] | None:
        """An example that the module names itself, as None, wins over one that was seen."""
        if pl_module.example_input_array is not None:
            return None
        validated_on = None if self._validation is None else self._validation.example_args
        trained_on = None if self._recorder is None else self._recorder.arguments
        return validated_on or trained_on

    def _refuse_other_settings(self, saved: dict[str, Any], settings: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint of other settings.

        Raises:
            ConfigurationError: One of them differs.
        """
        for name, given in settings.items():
            if saved.get(name) != given:
                raise ConfigurationError(
                    f"the checkpoint was trained with {self.state_key} {name} {saved.get(name)!r}, this run has "
                    f"{given!r}; give it the same to resume, or start a new fit without ckpt_path from the weights "
                    "that load_from_checkpoint gives"
                )


def plain_scheme(scheme: QuantScheme | None) -> dict[str, Any]:
    """A scheme as plain values, for a checkpoint."""
    if scheme is None:
        return {"scheme": None, "edge_bits": None, "overrides": None}
    overrides = None if scheme.overrides is None else dict(scheme.overrides)
    return {"scheme": scheme.scheme, "edge_bits": scheme.edge_bits, "overrides": overrides}
