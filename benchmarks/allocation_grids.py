"""The grids of benchmarks/allocation.py: what is compared, on which settings. Fixed before the first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMES, ALPHAS = ("w4a8", "w3a8", "w2a8"), (0.05, 0.3, 5.0)
CELLS = tuple((scheme, alpha) for scheme in SCHEMES for alpha in ALPHAS)
ALLOCATORS = (
    *("all-fp", "all-ptq", "all-qat-fake", "all-qat", "free-qat", "random-total", "random-tier"),
    *("coarse", "hybrid", "best-fixed"),
)
GRID_SEEDS = (100, 101)
"""Those by which `best-fixed` is chosen, whatever seeds are compared."""
INT8_PTQ = {"layer_kernels": {"ptq": {"*": "int8"}}}
"""`auto` would compute LeNet-5's small layers in fp32, and PTQ would be fp to the last bit."""

_MNIST5K = {"class_path": "fedhq_lightning.data.MNIST5k", "init_args": {"batch_size": 32}}
_FASHION = {"class_path": "fedhq_lightning.data.FashionMNIST", "init_args": {"batch_size": 64}}
_LENET = {"class_path": "fedhq_lightning.models.LeNet5", "init_args": {"lr": 0.03, "momentum": 0.9}}
_VIT = {
    "class_path": "fedhq_lightning.models.ViT",
    "init_args": {"patch_size": 7, "width": 192, "depth": 4, "num_heads": 4, "lr": 0.001},
}
_RESNET = {"class_path": "fedhq_lightning.models.ResNet20", "init_args": {"width": 32, "lr": 0.03}}


@dataclass(frozen=True)
class Grid:
    """One of the grids.

    Attributes:
        cells: Schemes and alphas.
        models: By name; the name is left out of file names where there is one only.
        datamodule: Part of the recipe.
        num_clients: All have a device of the `mixed` fleet.
        seeds: How many, from 0.
        trainer: What is set beside scheme, fleet and the like.
        allocators: Compared.
        setting: In words, for the page.
        drawn: Names of the settings whose curves are drawn.
        tells_wall: Whether each run was pinned to a core of its own; of other grids no wall time is told.
    """

    cells: Sequence[tuple[str, float]]
    models: Mapping[str, Mapping[str, Any]]
    datamodule: Mapping[str, Any]
    num_clients: int
    seeds: int
    trainer: Mapping[str, Any]
    allocators: Sequence[str]
    setting: str
    drawn: Sequence[str]
    tells_wall: bool = False


GRIDS = {
    "small": Grid(
        CELLS,
        {"lenet": _LENET},
        _MNIST5K,
        num_clients=20,
        seeds=5,
        trainer={"max_rounds": 20, "clients_per_round": 10, "local_epochs": 2, "lanes": INT8_PTQ},
        allocators=ALLOCATORS,
        setting="MNIST-5k, LeNet-5, 20 clients, 10 a round, 20 rounds, 2 local epochs, batch 32, SGD with learning "
        "rate 0.03 and momentum 0.9, PTQ in int8 in every layer",
        drawn=("w4a8-0.3", "w2a8-0.3"),
    ),
    "large": Grid(
        CELLS,
        {"lenet": _LENET},
        _FASHION,
        num_clients=30,
        seeds=3,
        trainer={
            **{"max_rounds": 20, "clients_per_round": 10, "local_steps": 20, "lanes": INT8_PTQ},
            "eval_every_n_rounds": 2,
        },
        allocators=tuple(name for name in ALLOCATORS if name != "best-fixed"),
        setting="Fashion-MNIST (all 60,000 images), LeNet-5, 30 clients, 10 a round, 20 rounds, 20 local steps, batch "
        "64, SGD with learning rate 0.03 and momentum 0.9, PTQ in int8 in every layer, evaluated every second round",
        drawn=("w4a8-0.3", "w2a8-0.3"),
    ),
    "time": Grid(
        (("w4a8", 0.3), ("w2a8", 0.05)),
        {"vit": _VIT, "resnet": _RESNET},
        _FASHION,
        num_clients=30,
        seeds=2,
        trainer={"max_rounds": 10, "clients_per_round": 6, "local_steps": 15, "eval_every_n_rounds": 2},
        allocators=("all-ptq", "all-qat-fake", "all-qat", "free-qat", "coarse", "hybrid"),
        setting="Fashion-MNIST, 30 clients, 6 a round, 10 rounds, 15 local steps, batch 64, evaluated every second "
        "round; a vision transformer (16 tokens, width 192, depth 4) and a ResNet of width 32, kernels as the package "
        "chooses them",
        drawn=("vit-w4a8-0.3", "vit-w2a8-0.05"),
        tells_wall=True,
    ),
}
