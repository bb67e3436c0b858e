"""Which arguments of a recipe another class gets, and that it is said."""

import warnings
from typing import Any

import pytest
import yaml

from fedhq_lightning.launch.resolve import resolve

from ..small_recipe import changed

OWN = f"{__name__.rpartition('.')[0]}.own_classes"


def resolved(*overrides: str, recipe: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[str]]:
    """The model's arguments, and what was said."""
    text = yaml.safe_dump(changed(recipe or {}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        content = yaml.safe_load(resolve("mine", text, overrides).recipe.text)
    return content["model"]["init_args"], [str(each.message) for each in said]


def test_what_only_has_the_same_name_is_left_and_what_has_no_default_is_kept() -> None:
    arguments, (said,) = resolved(f"--model={OWN}.Alien")
    assert arguments == {"image_size": 8, "lr": 0.001, "hidden_sizes": "none"}
    assert said == (
        "kept from the recipe: model.image_size=8 (Alien has no default); not kept from the recipe, since it is of "
        "another class: model.lr=0.1 (Alien: 0.001); --model.lr=0.1 keeps it"
    )


def test_one_of_the_family_keeps_what_is_written_and_no_default_of_the_old_class() -> None:
    arguments, (said,) = resolved(f"--model={OWN}.Kin")
    assert (arguments["lr"], arguments["momentum"], arguments["image_size"]) == (0.1, 0.5, 8)
    assert said == "kept from the recipe: model.image_size=8 (Kin: 32), model.lr=0.1 (Kin: 0.02)"


def test_a_subclass_keeps_all_that_is_written() -> None:
    arguments, (said,) = resolved(f"--model={OWN}.Child")
    assert (arguments["hidden_sizes"], arguments["lr"], arguments["image_size"]) == ([16], 0.1, 8)
    assert said == (
        "kept from the recipe: model.hidden_sizes=[16] (Child: [4]), model.image_size=8 (Child: 28), model.lr=0.1 "
        "(Child: 0.03)"
    )


def test_optimizers_are_no_family() -> None:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    aggregator = {"class_path": "FedOpt", "init_args": {"optimizer": optimizer}}
    text = yaml.safe_dump(changed({"trainer.aggregator": aggregator}))
    with pytest.warns(UserWarning, match=r"aggregator.optimizer.lr=0.5 \(Adam: 0.001\); --trainer.aggr"):
        content = yaml.safe_load(resolve("mine", text, ["--trainer.aggregator.optimizer=torch.optim.Adam"]).recipe.text)
    assert content["trainer"]["aggregator"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.001


@pytest.mark.parametrize(
    "flags",
    [
        [f"--model={OWN}.Alien", "--model.lr=0.7", "--model.image_size=9"],
        ["--model.lr=0.7", f"--model={OWN}.Alien", "--model.init_args.image_size=9"],
        [f"--model={{class_path: {OWN}.Alien, init_args: {{lr: 0.7, image_size: 9}}}}"],
    ],
)
def test_flags_count_wherever_they_stand(flags: list[str]) -> None:
    arguments, said = resolved(*flags)
    assert arguments == {"image_size": 9, "lr": 0.7, "hidden_sizes": "none"} or flags[0] == "--model.lr=0.7"
    assert said == []


def test_nothing_is_said_where_nothing_differs() -> None:
    assert resolved("--model=MLP", "--model.lr=0.1")[1] == []
    assert resolved(f"--model={OWN}.Alien", "--model.image_size=8", recipe={"model.init_args.lr": 0.001})[1] == []


def test_parts_of_the_data_likewise() -> None:
    text = yaml.safe_dump(changed({"data.init_args.datamodule.init_args": {"batch_size": 7}}))
    flag = "--data.datamodule=fedhq_lightning.data.MNIST5k"
    with pytest.warns(UserWarning, match=r"^kept from the recipe: data.datamodule.batch_size=7 \(MNIST5k: 32\)$"):
        content = yaml.safe_load(resolve("mine", text, [flag]).recipe.text)
    assert content["data"]["init_args"]["datamodule"]["init_args"] == {"batch_size": 7}
