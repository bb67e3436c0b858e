"""What is deployed where the exported program cannot do what validation asks of it."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.deploy import load_packed
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import NUM_CLASSES, SmallData, SmallModule
from ..trainer.runs import fit, records

pytestmark = pytest.mark.usefixtures("no_report")


class Texts(SmallData):
    """Token ids, padded to the longest of each batch."""

    def val_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        texts = [torch.randint(0, 9, (1 + index,), generator=generator) for index in range(12)]
        return DataLoader(texts, 4, collate_fn=self.collate)  # type: ignore[arg-type]  # a list is a dataset

    def test_dataloader(self) -> Any:
        return self.val_dataloader()

    def train_dataloader(self, client_id: Any) -> Any:
        return self.val_dataloader()

    @staticmethod
    def collate(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([len(text) % NUM_CLASSES for text in texts])
        return nn.utils.rnn.pad_sequence(texts, batch_first=True), labels


class Reader(SmallModule):
    """The mean of the words' embeddings, whatever their number."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 12)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(self.embedding(inputs).mean(1))


class Scaled(SmallModule):
    """Calls itself by keyword, but not the first time."""

    def forward(self, inputs: Tensor, scale: float = 1.0) -> Tensor:
        return self.net(inputs) * scale

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_scaled", self(batch[0], scale=2.0).mean())


def deployed(module: L.LightningModule, data: SmallData) -> FederatedTrainer:
    return fit(module, data, scheme="w4a8", callbacks=FixedAllocator("ptq"), max_rounds=1)[0]


@pytest.mark.parametrize(("module", "data"), [(Reader(), Texts()), (Scaled(), SmallData())])
def test_a_program_that_fails_on_the_held_out_batches_is_not_deployed(module: SmallModule, data: SmallData) -> None:
    done = deployed(module, data)
    folder = done.run_dir / "model"
    assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "model.safetensors", "README.md"}
    assert done.summary["export"] == "packed"
    reason = done.summary["export_reason"]
    assert f"{type(module).__name__}, exported, fails on the held-out batches: " in reason
    assert "\n" not in reason
    assert reason in (folder / "README.md").read_text()
    assert done.summary["metric_quantized"] == records(done)[1].metric_quantized
    load_packed(folder / "model.safetensors", module)
