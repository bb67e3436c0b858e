"""`self.log` in all its forms reports what Lightning's own Trainer reports."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from fedhq_lightning.errors import ConfigurationError

from ..beside_lightning import lightning_fit, lightning_validate
from ..federated.client_fits import client_trainer, loader
from ..small_federation import NUM_CLASSES, SmallModule


class LogsEverything(SmallModule):
    """Uses `self.log` in all its forms."""

    def __init__(self) -> None:
        super().__init__()
        self.collection = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(NUM_CLASSES),
                "f1": MulticlassF1Score(NUM_CLASSES),
                "micro": MulticlassAccuracy(NUM_CLASSES, average="micro"),
            },
            prefix="all_",
        )
        self.by_hand = MulticlassAccuracy(NUM_CLASSES, average="micro")
        self.seen: list[Tensor] = []

    def log_all(self, batch: Any) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        loss = losses.mean()
        self.log("plain", loss, on_step=False, on_epoch=True)
        self.log("both", loss, on_step=True, on_epoch=True)
        self.log("sum", losses.sum(), reduce_fx="sum", on_step=False, on_epoch=True)
        self.log("max", losses.max(), reduce_fx=torch.max, on_step=False, on_epoch=True)
        self.log("min", losses.min(), reduce_fx="min", on_step=False, on_epoch=True)
        self.log("own_weight", loss, batch_size=3, on_step=False, on_epoch=True)
        self.log("integer", len(labels), on_step=False, on_epoch=True)
        self.log("one_element", loss.reshape(1), on_step=False, on_epoch=True, prog_bar=True, logger=False)
        self.log("options", loss, on_step=False, on_epoch=True, sync_dist=True, rank_zero_only=False, enable_graph=True)
        self.log_dict({"in_dict": loss, "in_dict_2": 2 * loss}, on_step=False, on_epoch=True)
        self.collection.update(logits, labels)
        self.log_dict(self.collection, on_step=False, on_epoch=True)
        self.accuracy(logits, labels)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("accuracy_too", self.accuracy, on_step=False, on_epoch=True, metric_attribute="accuracy")
        self.by_hand.update(logits, labels)
        self.seen.append(loss.detach())
        return loss

    def end(self) -> None:
        self.log("by_hand", self.by_hand.compute())
        self.by_hand.reset()
        self.log("worst_batch", torch.stack(self.seen).max())
        self.seen.clear()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.log_all(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log_all(batch)

    def on_train_epoch_end(self) -> None:
        self.end()

    def on_validation_epoch_end(self) -> None:
        self.end()


class _Box:
    def __init__(self, content: Any) -> None:
        self.content = content


class TestLog:
    def test_validation_logs_what_lightning_reports(self) -> None:
        reference = lightning_validate(LogsEverything(), loader())
        got = client_trainer(LogsEverything()).evaluate([loader()])
        # Lightning's callback_metrics also hold the last step's value, which is no result of an epoch.
        wanted = {name: value for name, value in reference.items() if not name.endswith("_step")}
        assert got == pytest.approx(wanted, rel=1e-6)

    def test_training_logs_what_lightning_reports(self) -> None:
        reference = lightning_fit(LogsEverything(), loader(), max_epochs=2).callback_metrics
        _, got = client_trainer(LogsEverything(), local_epochs=2).fit(loader())
        wanted = {name: float(value) for name, value in reference.items() if not name.endswith("_step")}
        assert got == pytest.approx(wanted, rel=1e-6)

    def test_several_loaders_get_lightnings_suffix(self) -> None:
        class Shared(SmallModule):
            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
                loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
                self.log("val_loss", loss)
                self.log(f"alone_{dataloader_idx}", loss, add_dataloader_idx=False)

        loaders = [loader(20), loader(11, seed=8), loader(9, seed=9)]
        reference, got = lightning_validate(Shared(), loaders), client_trainer(Shared()).evaluate(loaders)
        assert got == pytest.approx(reference, rel=1e-6)
        assert {"val_loss/dataloader_idx_2", "alone_1"} <= got.keys()

    def test_a_step_value_is_averaged_over_the_epoch(self) -> None:
        """Lightning keeps the last batch's; a client reports what its whole fit was like."""
        losses = []

        class Notes(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = super().training_step(batch, batch_idx)
                losses.append((loss.item(), len(batch[0])))
                return loss

        _, metrics = client_trainer(Notes()).fit(loader())
        mean = sum(loss * size for loss, size in losses) / sum(size for _, size in losses)
        assert metrics == {"train_loss": pytest.approx(mean)}

    def test_callback_metrics_hold_the_newest_value_within_an_epoch(self) -> None:
        class Reads(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = super().training_step(batch, batch_idx)
                assert self.trainer.callback_metrics["train_loss"] == loss.detach()
                return loss

        client_trainer(Reads()).fit(loader())

    @pytest.mark.parametrize("value", [torch.ones(3), "text"])
    def test_refuses_what_is_no_number(self, value: Any) -> None:
        class Wrong(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                self.log("oops", value)
                return super().training_step(batch, batch_idx)

        with pytest.raises(ConfigurationError, match="oops"):
            client_trainer(Wrong()).fit(loader())

    def test_batches_without_a_size_need_none_where_nothing_is_averaged(self) -> None:
        class Opaque(SmallModule):
            def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                return _Box(batch)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                inputs, labels = batch.content
                self.log("seen", len(inputs), reduce_fx="sum")
                loss = nn.functional.cross_entropy(self(inputs), labels)
                self.log("loss", loss, batch_size=len(inputs))
                return loss

        assert client_trainer(Opaque()).fit(loader())[1]["seen"] == 27.0

    def test_nested_modules_log_too(self) -> None:
        class Outer(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.inner = SmallModule()

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return self.inner.training_step(batch, batch_idx)

        assert "train_loss" in client_trainer(Outer()).fit(loader())[1]


def test_what_is_logged_at_an_epochs_end_leaves_the_epochs_values() -> None:
    class LogsAtEnd(SmallModule):
        def on_train_epoch_end(self) -> None:
            before = float(self.trainer.callback_metrics["train_loss"])
            self.log("epoch", 1.0)
            assert float(self.trainer.callback_metrics["train_loss"]) == before
            assert float(self.trainer.callback_metrics["epoch"]) == 1.0

    client_trainer(LogsAtEnd()).fit(loader())
    lightning_fit(LogsAtEnd(), loader())
