"""The quantized evaluation beside Lightning's own: same batches, no traces in the user's run."""

from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme, convert

from ..beside_lightning import lightning_validate
from ..small_script import ScriptModule, fit, floats, quantized, val_loader


def quantized_metrics(module: ScriptModule, **settings: Any) -> tuple[dict[str, float], dict[str, float]]:
    """What the callback reports after a fit, and what Lightning measures of the converted module itself."""
    trainer = fit(module, [quantized("qat", "w2a8")], max_epochs=1, **settings)
    reported = {
        name.removeprefix("quantized/"): value
        for name, value in floats(trainer.callback_metrics).items()
        if name.startswith("quantized/")
    }
    return reported, lightning_validate(convert(module, QuantScheme("w2a8")), val_loader())


def test_metric_objects_and_every_form_of_log() -> None:
    class Logging(ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = MulticlassAccuracy(4)
            self.several = MetricCollection([MulticlassF1Score(4)], prefix="several/")
            self.found: list[Tensor] = []

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            outputs = self(batch[0])
            self.accuracy(outputs, batch[1])
            self.several(outputs, batch[1])
            self.found.append(outputs)
            self.log("object", self.accuracy)
            self.log_dict(self.several)
            self.log("largest", outputs.max(), reduce_fx="max", on_step=True, on_epoch=True)
            self.log("sum", outputs.abs().sum(), reduce_fx=torch.sum)
            self.log("weighted", outputs.mean(), batch_size=batch_idx + 1)

        def on_validation_epoch_end(self) -> None:
            self.log("at_end", torch.cat(self.found).std())
            self.found.clear()

    reported, expected = quantized_metrics(Logging())
    assert set(expected) == {
        "object", "several/MulticlassF1Score", "largest", "largest_epoch", "sum", "weighted", "at_end"
    }  # fmt: skip
    assert reported == expected


def test_steps_that_change_their_batch() -> None:
    class Greedy(ScriptModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            batch[0].mul_(2)
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    module = Greedy()
    reported, expected = quantized_metrics(module)
    assert reported == expected
    trainer = fit(module, [quantized("qat", "w2a8")], max_epochs=1)
    assert float(trainer.callback_metrics["val_loss"]) == lightning_validate(module, val_loader())["val_loss"]


def test_draws_nothing_from_the_users_generators() -> None:
    class Sampling(ScriptModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("drawn", torch.rand(()))

    def drawn(*callbacks: Any) -> list[float]:
        trainer = fit(Sampling(), callbacks, max_epochs=2)
        return [float(trainer.callback_metrics["drawn"]), float(torch.rand(()))]

    assert drawn(quantized("qat")) == drawn()


def test_user_logger_sees_the_fp_model_alone() -> None:
    class Drawing(ScriptModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            assert self.trainer.datamodule is None
            assert self.trainer.max_epochs == 1
            if self.logger:
                self.logger.experiment.log_metrics({"pictures": 1.0})

    rows: list[dict[str, float]] = []

    class Counting(CSVLogger):
        @property
        def experiment(self) -> Any:
            rows.append({})
            return super().experiment

    def asked(*callbacks: Any) -> int:
        rows.clear()
        fit(Drawing(), callbacks, max_epochs=1, logger=Counting("logs"), limit_train_batches=0)
        return len(rows)

    assert asked(quantized("qat")) == asked()


def test_refuses_steps_that_take_the_iterator() -> None:
    class Iterating(ScriptModule):
        def validation_step(self, dataloader_iter: Any) -> None:
            next(dataloader_iter)

    with pytest.raises(ConfigurationError, match="validation_step takes dataloader_iter"):
        fit(Iterating(), [quantized("qat")])
