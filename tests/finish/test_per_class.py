"""Accuracy on each class: the module's own figures taken apart, and nothing where its outputs are no class scores."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ..small_federation import NUM_CLASSES, SmallData, SmallModule, examples
from ..trainer.runs import fit

pytestmark = pytest.mark.usefixtures("no_report")


class TwoLoaders(SmallData):
    def val_dataloader(self) -> Any:
        named = examples(20, 101)
        named.classes = ["ape", "bear", "cat"]  # type: ignore[attr-defined]  # as torchvision's datasets have it
        return [DataLoader(examples(50, 100), 32), DataLoader(named, 8)]


class TakesIndex(SmallModule):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


class Dictionaries(SmallData):
    def val_dataloader(self) -> Any:
        def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
            return {"inputs": torch.stack([row[0] for row in rows]), "labels": torch.stack([row[1] for row in rows])}

        return DataLoader(examples(50, 100), 32, collate_fn=collate)


class TakesDictionaries(SmallModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch.values() if isinstance(batch, dict) else batch
        self.log("val_loss", nn.functional.cross_entropy(self(inputs), labels))


def test_taken_apart_they_give_the_metric_back_bit_for_bit() -> None:
    done, _ = fit(scheme="w4a8", monitor="val_accuracy")
    told = done.summary["per_class"]
    assert told["classes"] == ["0", "1", "2"]
    labels = examples(50, 100).tensors[1]
    assert told["examples"] == torch.bincount(labels, minlength=NUM_CLASSES).tolist()
    for kind in ("fp", "quantized"):
        right = sum(round(part * count) for part, count in zip(told[kind], told["examples"], strict=True))
        assert torch.tensor(right / 50).item() == done.summary[f"metric_{kind}"]

    module = SmallModule()
    module.load_state_dict(torch.load(done.run_dir / "checkpoints/best.ckpt", weights_only=True)["state"])
    guesses = module(examples(50, 100).tensors[0]).argmax(1)
    assert told["fp"] == [float((guesses[labels == each] == each).double().mean()) for each in range(NUM_CLASSES)]


def test_of_several_loaders_the_monitored_one() -> None:
    done, _ = fit(TakesIndex(), TwoLoaders(), monitor="val_loss/dataloader_idx_1", max_rounds=1)
    told = done.summary["per_class"]
    assert told["classes"] == ["ape", "bear", "cat"]
    assert sum(told["examples"]) == 20
    assert told["quantized"] is None


def test_batches_that_name_their_labels() -> None:
    done, _ = fit(TakesDictionaries(), Dictionaries(), max_rounds=1)
    assert sum(done.summary["per_class"]["examples"]) == 50


def test_a_class_without_examples_has_no_accuracy() -> None:
    class Lopsided(SmallData):
        def val_dataloader(self) -> Any:
            inputs, labels = examples(50, 100).tensors
            return DataLoader(TensorDataset(inputs[labels > 0], labels[labels > 0]), 32)

    told = fit(SmallModule(), Lopsided(), max_rounds=1)[0].summary["per_class"]
    assert told["examples"][0] == 0
    assert told["fp"][0] is None
    assert None not in told["fp"][1:]


class Embeds(SmallModule):
    """Its forward is three numbers wide, as there are classes, and yet tells none."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self(batch[0]).square().mean())


class PastForward(SmallModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))


class Twice(SmallModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]) + self(batch[0] + 1), batch[1]))


class Nothing(SmallModule):
    validation_step = L.LightningModule.validation_step


@pytest.mark.parametrize("module", [Embeds(), PastForward(), Twice(), Nothing()], ids=lambda each: type(each).__name__)
def test_left_out_where_what_is_logged_does_not_bear_it_out(module: SmallModule) -> None:
    assert fit(module, SmallData(), max_rounds=1)[0].summary["per_class"] is None
