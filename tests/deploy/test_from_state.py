"""What is deployed where the exported program cannot do what validation asks of it."""

from contextlib import nullcontext
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.deploy import ExportError, load_packed
from fedhq_lightning.deploy.from_state import metrics_of_program
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import FitOptions

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


class Counted(nn.Module):
    """A program that may be wrong on inputs of some width, and tells what it was given."""

    def __init__(self, module: L.LightningModule, wrong_width: int = 0) -> None:
        super().__init__()
        self.module, self.wrong_width, self.shapes = module, wrong_width, list[tuple[int, ...]]()

    def forward(self, inputs: Tensor) -> Tensor:
        self.shapes.append(tuple(inputs.shape))
        output: Tensor = self.module(inputs)
        return output + 1e-6 if inputs.shape[1] == self.wrong_width else output


def test_a_program_is_compared_on_each_shape_once_and_the_module_computes_the_metrics() -> None:
    template, cpu = Reader(), torch.device("cpu")
    evaluator = Evaluator(template, QuantScheme("w4a8"), FitOptions(), Processes(None), cpu, nullcontext, seed=0)
    state = template.state_dict()
    shapes = [(70, 3), (30, 3), (70, 5), (70, 3)]
    loaders = [[(torch.ones(shape).long(), torch.zeros(shape[0]).long()) for shape in shapes]]
    program = Counted(evaluator.deployed(state))
    found = metrics_of_program(evaluator, state, loaders, program, only_new_shapes=True)
    assert program.shapes == [(64, 3), (64, 5)]
    program = Counted(evaluator.deployed(state))
    assert found == metrics_of_program(evaluator, state, loaders, program)
    assert program.shapes == shapes
    with pytest.raises(ExportError, match="differs from the module"):
        metrics_of_program(evaluator, state, loaders, Counted(evaluator.deployed(state), 5), only_new_shapes=True)
