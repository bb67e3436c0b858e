"""The worst client: an optional figure, told where validation runs on training batches."""

import warnings
from typing import Any

import pytest
from torch import nn
from torch.utils.data import DataLoader

from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import ClientId

from ..small_federation import SmallData, SmallModule, examples
from ..trainer.runs import fit

pytestmark = pytest.mark.usefixtures("no_report")


class TwoLoaders(SmallData):
    def val_dataloader(self) -> Any:
        return [DataLoader(examples(50, 100), 32), DataLoader(examples(20, 101), 32)]


class NeedsIndex(SmallModule):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.log(f"val_loss_{dataloader_idx}", nn.functional.cross_entropy(self(batch[0]), batch[1]))


class TakesIndex(SmallModule):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


class TestWorstClient:
    @pytest.mark.parametrize(
        ("module", "monitor"),
        [
            (NeedsIndex(), "val_loss_0/dataloader_idx_0"),
            (TakesIndex(), "val_loss/dataloader_idx_0"),
            (TakesIndex(), "val_loss/dataloader_idx_1"),
        ],
    )
    def test_takes_the_place_of_the_monitored_loader(self, module: SmallModule, monitor: str) -> None:
        done, _ = fit(module, TwoLoaders(), monitor=monitor, max_rounds=1)
        worst = done.summary["worst_client"]
        assert worst["clients_evaluated"] == 4

        alone = SmallModule()
        alone.load_state_dict(module.state_dict())
        losses = {client_id: self.loss_of(client_id, done, alone) for client_id in SmallData().client_ids}
        assert worst["client_id"] == max(losses, key=losses.__getitem__)
        assert worst["metric"] == pytest.approx(losses[worst["client_id"]], rel=1e-5)

    def loss_of(self, client_id: ClientId, trainer: FederatedTrainer, module: SmallModule) -> float:
        class HeldOut(SmallData):
            def val_dataloader(self) -> Any:
                return self.train_dataloader(client_id)

        return trainer.validate(module, HeldOut())["fp/val_loss"]

    def test_training_batches_unlike_validation_batches_end_no_run(self) -> None:
        class Unlabelled(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return self(batch).square().mean()

        class Inputs(SmallData):
            def train_dataloader(self, client_id: Any) -> Any:
                return DataLoader(self.dataset(client_id).tensors[0], 8)  # type: ignore[arg-type]  # indexed alike

        with pytest.warns(UserWarning, match=r"no worst client.*: \w+Error: ") as caught:
            done, _ = fit(Unlabelled(), Inputs(), max_rounds=1)
        assert len([each for each in caught if "worst client" in str(each.message)]) == 1
        assert done.summary["worst_client"] is None

    def test_says_nothing_where_all_is_well(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            done, _ = fit(max_rounds=1)
        assert done.summary["worst_client"] is not None
