"""What the user's own code warns of in a run is seen, wherever it runs."""

import warnings
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.types import Plan

from ..small_federation import SmallData, SmallModule, examples, trainer


def warn(place: str) -> None:
    warnings.warn(f"the user's, in {place}", stacklevel=1)


class Examples(TensorDataset):
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        warn("a data set")
        return super().__getitem__(index)


class Data(SmallData):
    @override
    def dataset(self, client_id: Any) -> TensorDataset:
        return Examples(*super().dataset(client_id).tensors)

    @override
    def val_dataloader(self) -> Any:
        warn("val_dataloader")
        return DataLoader(examples(50, 100), 32)


class Module(SmallModule):
    def forward(self, inputs: Tensor) -> Tensor:
        warn("forward")
        return super().forward(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        warn("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        warn("validation_step")
        super().validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        warn("configure_optimizers")
        return super().configure_optimizers()


class Callback(RoundCallback):
    @override
    def on_round_start(self, trainer: Any, round_number: int, plan: Plan) -> None:
        warn("a callback")


class Allocator(FixedAllocator):
    @override
    def propose(self, round_number: int, cohort: Any) -> Plan:
        warn("an allocator")
        return super().propose(round_number, cohort)


class Logger(DummyLogger):
    """Not one of Lightning's, so that nothing of theirs is warned of."""

    def log_hyperparams(self, *arguments: Any, **keywords: Any) -> None:
        warn("a logger's log_hyperparams")

    def log_metrics(self, *arguments: Any, **keywords: Any) -> None:
        warn("a logger's log_metrics")

    def finalize(self, status: str) -> None:
        warn("a logger's finalize")


def test_warnings_of_the_users_code_are_seen() -> None:
    there = trainer(
        max_rounds=1, scheme="w4a8", logger=Logger(), callbacks=[Callback(), Allocator("qat")], enable_progress_bar=True
    )
    there.writes_model = False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there.fit(Module(), Data())
    places = "a data set, val_dataloader, forward, training_step, validation_step, configure_optimizers, a callback, "
    places += "an allocator, a logger's log_hyperparams, a logger's log_metrics, a logger's finalize"
    assert {str(each.message) for each in said} == {f"the user's, in {place}" for place in places.split(", ")}
