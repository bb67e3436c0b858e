"""Short names of classes in recipes and in overrides."""

import pytest
import yaml

from fedhq_lightning.launch.class_names import override_with_full_names, with_full_names
from fedhq_lightning.launch.resolve import resolve

from ..small_recipe import changed


def test_a_recipe_of_short_names_is_that_of_whole_ones() -> None:
    whole = changed({})
    short = changed(
        {
            "model.class_path": "MLP",
            "data.class_path": "PartitionedDataModule",
            "data.init_args.datamodule.class_path": "Digits",
            "data.init_args.partitioner.class_path": "DirichletPartitioner",
            "trainer.callbacks.0.class_path": "FixedAllocator",
        }
    )
    names = (resolve("small", yaml.safe_dump(each)).recipe.text for each in (short, whole))
    assert len(set(names)) == 1


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("--model=LeNet5", "fedhq_lightning.models.LeNet5"),
        ("--trainer.aggregator=FedProx", "fedhq_lightning.federated.algorithms.FedProx"),
        ("--trainer.callbacks=HybridAllocator", "fedhq_lightning.callbacks.HybridAllocator"),
        ("--trainer.callbacks=[{class_path: EarlyStopping}]", "fedhq_lightning.callbacks.EarlyStopping"),
        ("--data.partitioner=IidPartitioner", "flwr_datasets.partitioner.IidPartitioner"),
        ("--trainer.logger=CSVLogger", "lightning.pytorch.loggers.CSVLogger"),
    ],
)
@pytest.mark.filterwarnings("ignore:kept from the recipe")
def test_overrides(override: str, meant: str) -> None:
    recipe = changed({"trainer.callbacks": None} if override.endswith("}]") else {})
    more = {"logger": ["--trainer.logger.save_dir=logs"], "partit": ["--data.partitioner.num_partitions=4"]}
    others = next((each for word, each in more.items() if word in override), [])
    assert f"class_path: {meant}\n" in resolve("small", yaml.safe_dump(recipe), [override, *others]).recipe.text


def test_text_that_is_a_class_name_by_chance_stays() -> None:
    assert override_with_full_names("--data.datamodule.label=Digits") == "--data.datamodule.label=Digits"
    assert override_with_full_names("--model=mine.Net") == "--model=mine.Net"
    assert with_full_names({"class_path": "Unknown", "init_args": {"name": "MLP"}}) == {
        "class_path": "Unknown",
        "init_args": {"name": "MLP"},
    }
