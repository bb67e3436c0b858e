"""`FederatedTrainer.predict`: what is deployed, in the shape of Lightning's `Trainer.predict`."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.trainer import FederatedTrainer

from ..beside_lightning import lightning_trainer, without_advice
from ..small_federation import NUM_CLASSES, SmallData, SmallModule, examples, trainer
from .runs import fit


class Predicts(SmallModule):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert not self.training
        return self(batch[0])


class PredictData(SmallData):
    def predict_dataloader(self) -> Any:
        return DataLoader(examples(10, 300), 4)


def loader(count: int = 10) -> DataLoader[Any]:
    return DataLoader(examples(count, 300), 4)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> FederatedTrainer:
    settings = {"scheme": "w4a8", "callbacks": FixedAllocator("qat"), "max_rounds": 1}
    return fit(Predicts(), default_root_dir=tmp_path_factory.mktemp("runs"), **settings)[0]


def test_after_fit_it_is_the_deployed_model_bit_for_bit(done: FederatedTrainer) -> None:
    program = torch.export.load(done.run_dir / "model" / "model.pt2").module()
    outputs = done.predict(data=loader())
    assert [len(output) for output in outputs] == [4, 4, 2]
    for output, (inputs, _) in zip(outputs, loader(), strict=True):
        assert torch.equal(output, program(inputs))
        assert not output.requires_grad


def test_fp_by_argument_is_what_lightning_predicts() -> None:
    module = Predicts()
    there = trainer(scheme="w4a8")
    with without_advice():
        expected = lightning_trainer().predict(module, loader())
    assert expected is not None
    for data in (loader(), PredictData()):
        got = there.predict(module, data, quantized=False)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, expected, strict=True))
    quantized = there.predict(module, loader())
    assert not torch.equal(torch.cat(quantized), torch.cat(got))
    assert torch.equal(torch.cat(trainer().predict(module, loader())), torch.cat(got)), "no scheme: float32"
    assert module.training, "left as it was"


def test_several_loaders_give_a_list_each(done: FederatedTrainer) -> None:
    class ByIndex(SmallModule):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> tuple[int, int]:
            return dataloader_idx, batch_idx

    assert done.predict(ByIndex(), [loader(5), loader(4)]) == [[(0, 0), (0, 1)], [(1, 0)]]


def test_hooks_are_called_and_plain_batches_go_to_forward() -> None:
    class Hooked(SmallModule):
        def on_predict_start(self) -> None:
            self.calls = ["start"]

        def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.calls.append(f"{batch_idx}: {tuple(outputs.shape)}")
            done.append(self)

    done: list[Any] = []
    inputs = DataLoader(examples(5, 300).tensors[0], 4)  # type: ignore[arg-type]  # a tensor is a dataset
    outputs = trainer().predict(Hooked(), inputs)
    assert [tuple(output.shape) for output in outputs] == [(4, NUM_CLASSES), (1, NUM_CLASSES)]
    assert done[-1].calls == ["start", f"0: (4, {NUM_CLASSES})", f"1: (1, {NUM_CLASSES})"]


def test_refusals(done: FederatedTrainer) -> None:
    with pytest.raises(ConfigurationError, match="predict: no module; give one, or call fit before"):
        trainer().predict(data=loader())
    with pytest.raises(ConfigurationError, match="predict: no data; give a loader"):
        done.predict()
    with pytest.raises(ConfigurationError, match=r"SmallData has no predict_dataloader; add one, or give a loader"):
        done.predict(data=SmallData())
    with pytest.raises(
        ConfigurationError, match=r"SmallModule has no predict_step, so its forward is called with .* \(list\), and"
    ):
        done.predict(SmallModule(), loader())


def test_the_recipes_threads_hold_as_in_fit_and_not_afterwards() -> None:
    class TellsThreads(Predicts):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("threads", float(torch.get_num_threads()))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("threads", float(torch.get_num_threads()))

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.tensor(torch.get_num_threads())

    class TestData(SmallData):
        def test_dataloader(self) -> Any:
            return loader()

    there, before = trainer(threads=2), torch.get_num_threads()
    assert before != 2
    assert there.validate(TellsThreads(), TestData()) == {"fp/threads": 2.0}
    assert there.test(TellsThreads(), TestData()) == {"fp/threads": 2.0}
    assert [int(each) for each in there.predict(TellsThreads(), loader())] == [2, 2, 2]
    assert torch.get_num_threads() == before
