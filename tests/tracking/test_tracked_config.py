"""The settings that trackers show."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.run.description import describe
from fedhq_lightning.tracking.tracked_config import tracked_config


def keys(node: Any, name: str = "") -> Iterator[str]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from keys(value, f"{name}.{key}" if name else key)
    else:
        yield name


def test_runs_of_a_recipe_and_from_python_have_the_same_keys() -> None:
    name, text = recipe_files.find("digits-smoke")
    # A class of no recipe is described by what it holds, which need not be all that it was made with.
    resolved = resolve(name, text, ["--trainer.lanes.qat_kernel=fake"])
    trainer, model, data = resolved.instantiate()
    described = {"trainer": trainer.described, "model": describe(model), "data": describe(data), "device": "cpu"}
    from_python = tracked_config(described, "mlp", "val_accuracy", "max")
    content = yaml.safe_load(resolved.recipe.text)
    of_recipe = tracked_config({**described, "recipe": content | {"tune": {}}}, name, "val_accuracy", "max")
    assert {name: of_recipe[name] for name in ("model", "data", "trainer")} == content
    assert of_recipe["recipe"] == "digits-smoke"
    assert "tune" not in of_recipe
    not_kept_by_the_model = {
        f"model.init_args.{name}" for name in ("in_channels", "image_size", "num_classes", "hidden_sizes")
    }
    assert set(keys(of_recipe)) - set(keys(from_python)) == not_kept_by_the_model
    assert set(keys(from_python)) <= set(keys(of_recipe))
    assert from_python["trainer"]["lanes"]["qat_kernel"] == "fake"
