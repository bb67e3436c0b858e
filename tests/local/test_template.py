"""Layers are built by what the data tell, as in Lightning; a client's steps see no data but their batches."""

from typing import Any

import pytest
from flwr_datasets.partitioner import IidPartitioner
from lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader

from fedhq_lightning.data import PartitionedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.template import build_like, set_up_template
from fedhq_lightning.types import FitOptions

from ..small_federation import NUM_CLASSES, NUM_FEATURES, SmallModule, examples

OPTIONS = FitOptions(local_epochs=1)


class Wide(LightningDataModule):
    width = 7

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(examples(9, 1))


class AsWideAsTheData(SmallModule):
    def configure_model(self) -> None:
        width = self.trainer.datamodule.width  # type: ignore[attr-defined]  # as many modules do
        if not hasattr(self, "head"):
            self.head = nn.Sequential(nn.Linear(NUM_FEATURES, width), nn.Linear(width, NUM_CLASSES))


@pytest.mark.parametrize("is_dealt", [False, True])
def test_layers_may_ask_for_the_data_module(is_dealt: bool) -> None:
    data: Any = PartitionedDataModule(Wide(), IidPartitioner(2)) if is_dealt else Wide()
    template = set_up_template(AsWideAsTheData(), OPTIONS, datamodule=data)
    assert template.head[0].out_features == Wide.width  # type: ignore[union-attr,index]  # made in configure_model
    user = AsWideAsTheData()
    build_like(user, template, OPTIONS, data)
    assert user.state_dict().keys() == template.state_dict().keys()


def test_without_data_it_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="no 'datamodule'"):
        set_up_template(AsWideAsTheData(), OPTIONS)
