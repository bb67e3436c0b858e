from collections.abc import Mapping
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models import TabularInput, TabularMLP

INPUTS: dict[str, Any] = {
    "columns": [
        {"name": "age", "mean": 40.0, "scale": 10.0},
        {"name": "size", "categories": ["large", "small"]},
        {"name": "dose", "mean": 1.0, "scale": 0.5},
    ],
    "label": "ill",
    "classes": ["no", "yes"],
}
ROWS = torch.tensor([[50.0, 1.0, 1.0], [40.0, 0.0, 2.0], [torch.nan, torch.nan, torch.nan]])
FEATURES = [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]


class Tables(L.LightningDataModule):
    """Gives no batch that tells the columns; `model_inputs` does."""

    def __init__(self, told: Mapping[str, Any] | None = INPUTS) -> None:
        super().__init__()
        self.told = told

    def model_inputs(self) -> Mapping[str, Any] | None:
        return self.told

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(ROWS, torch.tensor([0, 1, 0])), batch_size=3)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()


def filled() -> TabularInput:
    layer = TabularInput()
    layer.fill(INPUTS)
    return layer


class TestInput:
    def test_numbers_are_standardized_and_categories_ones_among_zeros(self) -> None:
        assert filled()(ROWS).tolist() == FEATURES

    def test_nothing_of_it_is_trained(self) -> None:
        assert not any(parameter.requires_grad for parameter in filled().parameters())

    def test_weights_bring_the_columns_along(self) -> None:
        layer = TabularInput()
        layer.load_state_dict(filled().state_dict())
        assert layer(ROWS).tolist() == FEATURES

    def test_weights_of_other_columns_are_refused(self) -> None:
        other = TabularInput()
        other.fill(INPUTS | {"columns": INPUTS["columns"][:2]})
        with pytest.raises(ConfigurationError, match="table with other columns, categories or classes"):
            filled().load_state_dict(other.state_dict())
        other = TabularInput()
        other.load_state_dict(filled().state_dict())
        with pytest.raises(ConfigurationError, match=r"give the data module the inputs\.json"):
            other.fill(INPUTS | {"classes": ["no", "perhaps"]})

    def test_statistics_that_came_with_weights_stay(self) -> None:
        layer = filled()
        layer.fill(INPUTS | {"columns": [{"name": "age", "mean": 0.0, "scale": 1.0}, *INPUTS["columns"][1:]]})
        assert layer(ROWS).tolist() == FEATURES

    def test_without_columns_it_says_so(self) -> None:
        with pytest.raises(ConfigurationError, match="the columns are not known yet; call its fill in setup"):
            TabularInput()(ROWS)
        with pytest.raises(ConfigurationError, match="the data tell no columns of a table; give a CSVDataModule"):
            TabularInput().fill(None)

    def test_it_is_exported_with_a_batch_of_any_size(self) -> None:
        batch = torch.export.Dim.DYNAMIC
        program = torch.export.export(filled(), (ROWS,), dynamic_shapes=({0: batch},)).module()
        assert program(ROWS[:2]).tolist() == FEATURES[:2]


class TestMLP:
    @pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
    @pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
    def test_lightnings_trainer_fits_it_and_its_checkpoint_needs_no_data(self, tmp_path: Any) -> None:
        module = TabularMLP(hidden_sizes=[5])
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        trainer.fit(module, Tables())
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        again = TabularMLP.load_from_checkpoint(tmp_path / "last.ckpt", hidden_sizes=[5])
        assert torch.equal(again(ROWS), module(ROWS))

    def test_the_number_of_classes_must_be_that_of_the_data(self) -> None:
        module = TabularMLP(num_classes=3)
        module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        module.trainer.datamodule = Tables()  # type: ignore[attr-defined]  # Lightning sets it in fit
        with pytest.raises(
            ConfigurationError, match="num_classes 3: 'ill' has 2 classes, no, yes; set num_classes to 2"
        ):
            module.setup("fit")

    def test_there_is_a_hidden_layer(self) -> None:
        with pytest.raises(ConfigurationError, match="hidden_sizes"):
            TabularMLP(hidden_sizes=[])

    def test_logits(self) -> None:
        module = TabularMLP(num_classes=4, hidden_sizes=(6, 5))
        module.input.fill(INPUTS)
        assert module(ROWS).shape == (3, 4)
        assert [type(each) for each in module.layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
