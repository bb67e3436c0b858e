"""A recipe whose run takes a second, and how to change one."""

import copy
from pathlib import Path
from typing import Any

import yaml

ABSENT = object()

SMALL: dict[str, Any] = {
    "model": {
        "class_path": "fedhq_lightning.models.MLP",
        "init_args": {"image_size": 8, "hidden_sizes": [16], "lr": 0.1},
    },
    "data": {
        "class_path": "fedhq_lightning.data.PartitionedDataModule",
        "init_args": {
            "datamodule": {"class_path": "fedhq_lightning.data.Digits"},
            "partitioner": {
                "class_path": "flwr_datasets.partitioner.DirichletPartitioner",
                "init_args": {
                    "num_partitions": 4,
                    "partition_by": "label",
                    "alpha": 1.0,
                    "min_partition_size": 0,
                    "seed": 0,
                },
            },
        },
    },
    "trainer": {
        "max_rounds": 2,
        "clients_per_round": 2,
        "local_steps": 2,
        "scheme": "w4a8",
        "monitor": "val_accuracy",
        "callbacks": [
            {"class_path": "fedhq_lightning.callbacks.FixedAllocator", "init_args": {"allocation": 0.5}},
        ],
        "logger": False,
        "export": [],
    },
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The small recipe with values by dotted key; ABSENT takes a key out."""
    recipe = copy.deepcopy(SMALL)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        node: Any = recipe
        for key in path:
            node = node[int(key)] if isinstance(node, list) else node[key]
        if value is ABSENT:
            del node[last]
        else:
            node[last] = value
    return recipe


def write_recipe(path: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write the small recipe, changed."""
    path.write_text(yaml.safe_dump(changed(changes or {}), sort_keys=False))
    return path
