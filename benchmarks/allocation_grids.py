"""The grids of benchmarks/allocation.py: what is compared, on which settings. Fixed before the first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

SCHEMES, ALPHAS = ("w4a8", "w3a8", "w2a8"), (0.05, 0.3, 5.0)
CELLS = tuple((scheme, alpha) for scheme in SCHEMES for alpha in ALPHAS)
ALLOCATORS = (
    *("all-fp", "all-ptq", "all-qat-fake", "all-qat", "free-qat", "random-total", "random-tier"),
    *("coarse", "hybrid", "best-fixed"),
)
HARD_CELLS = (("w3a8", 0.3), ("w2a8", 0.3), ("w2a8", 0.05))
"""Where the choice of modes was seen to matter on the small grid."""
GRID_SEEDS = (100, 101)
"""Those by which `best-fixed` is chosen, whatever seeds are compared."""
INT8_PTQ = {"layer_kernels": {"ptq": {"*": "int8"}}}
"""`auto` would compute LeNet-5's small layers in fp32, and PTQ would be fp to the last bit."""
LANES = {"qat_backward": "bf16"}
"""Of every grid: the cells were run when this was the default."""

DIFFERENCES = tuple(
    ("hybrid", other)
    for other in ("all-ptq", "all-qat", "free-qat", "random-total", "random-tier", "coarse", "best-fixed")
)

_MNIST5K = {"class_path": "fedhq_lightning.data.MNIST5k", "init_args": {"batch_size": 32}}
_MNIST5K_64 = {"class_path": "fedhq_lightning.data.MNIST5k", "init_args": {"batch_size": 64}}
_FASHION = {"class_path": "fedhq_lightning.data.FashionMNIST", "init_args": {"batch_size": 64}}
_FASHION_256 = {"class_path": "fedhq_lightning.data.FashionMNIST", "init_args": {"batch_size": 256}}
_LENET = {"class_path": "fedhq_lightning.models.LeNet5", "init_args": {"lr": 0.03, "momentum": 0.9}}
_VIT = {
    "class_path": "fedhq_lightning.models.ViT",
    "init_args": {"patch_size": 7, "width": 192, "depth": 4, "num_heads": 4, "lr": 0.001},
}
_WIDE_MLP = {
    "class_path": "fedhq_lightning.models.MLP",
    "init_args": {"hidden_sizes": [1024, 1024, 1024], "lr": 0.03, "momentum": 0.9},
}
_RESNET = {"class_path": "fedhq_lightning.models.ResNet20", "init_args": {"width": 32, "lr": 0.03}}


_CIFAR10 = {
    "class_path": "fedhq_lightning.data.HuggingFaceDataModule",
    "init_args": {"name": "uoft-cs/cifar10", "image_key": "img", "batch_size": 32},
}
"""From the Hub, or from a folder of that name in the working directory that holds its parquet files."""
_MOBILE_BN = {
    "class_path": "fedhq_lightning.models.MobileNetV2",
    "init_args": {"in_channels": 3, "width": 16, "norm": "batch", "lr": 0.2},
}
_RESNET_BN = {
    "class_path": "fedhq_lightning.models.ResNet20",
    "init_args": {"in_channels": 3, "width": 8, "norm": "batch", "lr": 0.2},
}


@dataclass(frozen=True)
class Grid:
    """One of the grids.

    Attributes:
        cells: Schemes and alphas.
        models: By name; the name is left out of file names where there is one only.
        datamodule: Part of the recipe.
        num_clients: All have a device of the `mixed` fleet.
        seeds: Of the runs.
        trainer: What is set beside scheme, fleet and the like.
        allocators: Compared, as `fedhq compare` takes them.
        differences: Whose accuracy less whose is tabled.
        setting: In words, for the page.
        drawn: Names of the settings whose curves are drawn.
        tells_wall: Whether each run was pinned to a core of its own; of other grids no wall time is told.
    """

    cells: Sequence[tuple[str, float]]
    models: Mapping[str, Mapping[str, Any]]
    datamodule: Mapping[str, Any]
    num_clients: int
    seeds: Sequence[int]
    trainer: Mapping[str, Any]
    allocators: Sequence[str]
    setting: str
    drawn: Sequence[str] = ()
    differences: Sequence[tuple[str, str]] = DIFFERENCES
    tells_wall: bool = False


_SMALL_TRAINER = {"max_rounds": 20, "clients_per_round": 10, "local_epochs": 2, "lanes": INT8_PTQ}
_SMALL_SETTING = (
    "MNIST-5k, LeNet-5, 20 clients, 10 a round, 20 rounds, 2 local epochs, batch 32, SGD with learning rate 0.03 and "
    "momentum 0.9, PTQ in int8 in every layer"
)
_WIDE_MLP_TRAINER = {"max_rounds": 20, "clients_per_round": 6, "local_steps": 20, "eval_every_n_rounds": 2}
_WIDE_MLP_SETTING = (
    "Fashion-MNIST (all 60,000 images), the multilayer perceptron of the table of training steps (three layers of "
    "1,024), 30 clients, 6 a round, 20 rounds, 20 local steps, batch 256, SGD with learning rate 0.03 and momentum "
    "0.9, evaluated every second round, kernels as the package chooses them"
)
_AGAINST_PTQ = (("hybrid", "all-ptq"), ("coarse", "all-ptq"), ("all-qat", "all-ptq"))


_SMALL = Grid(
    CELLS,
    {"lenet": _LENET},
    _MNIST5K,
    num_clients=20,
    seeds=(3, 4, 5, 6, 7),
    trainer=_SMALL_TRAINER,
    allocators=ALLOCATORS,
    setting=_SMALL_SETTING,
    differences=(("hybrid", "all-fp"), *DIFFERENCES),
    drawn=("w4a8-0.3", "w2a8-0.3"),
)

GRIDS = {
    "small": _SMALL,
    "large": Grid(
        CELLS,
        {"lenet": _LENET},
        _FASHION,
        num_clients=30,
        seeds=(0, 1, 2),
        trainer={
            **{"max_rounds": 20, "clients_per_round": 10, "local_steps": 20, "lanes": INT8_PTQ},
            "eval_every_n_rounds": 2,
        },
        allocators=tuple(name for name in ALLOCATORS if name != "best-fixed"),
        setting="Fashion-MNIST (all 60,000 images), LeNet-5, 30 clients, 10 a round, 20 rounds, 20 local steps, batch "
        "64, SGD with learning rate 0.03 and momentum 0.9, PTQ in int8 in every layer, evaluated every second round",
        drawn=("w4a8-0.3", "w2a8-0.3"),
    ),
    "large-models": Grid(
        (("w4a8", 0.3), ("w2a8", 0.05)),
        {"vit": _VIT, "resnet": _RESNET},
        _FASHION,
        num_clients=30,
        seeds=(2, 3, 4),
        trainer={"max_rounds": 10, "clients_per_round": 6, "local_steps": 15, "eval_every_n_rounds": 2},
        allocators=("all-ptq", "all-qat-fake", "all-qat", "hybrid"),
        setting="Fashion-MNIST, 30 clients, 6 a round, 10 rounds, 15 local steps, batch 64, evaluated every second "
        "round; a vision transformer (16 tokens, width 192, depth 4) and a ResNet of width 32, kernels as the package "
        "chooses them. The ResNet learns next to nothing in so few steps",
        differences=_AGAINST_PTQ,
        drawn=("vit-w4a8-0.3", "resnet-w4a8-0.3"),
        tells_wall=True,
    ),
    "resnet": Grid(
        (("w4a8", 0.3),),
        {"resnet": _RESNET},
        _MNIST5K_64,
        num_clients=10,
        seeds=(0, 1, 2),
        trainer={
            **{"max_rounds": 20, "clients_per_round": 5, "local_steps": 20, "eval_every_n_rounds": 2},
            "uplink": "delta",
        },
        allocators=("all-ptq", "all-qat-fake", "all-qat", "hybrid"),
        setting="MNIST-5k, the ResNet of *large-models* (width 32) with more rounds, so that it learns: 10 clients, 5 "
        "a round, 20 rounds, 20 local steps, batch 64, SGD with learning rate 0.03 and momentum 0.9, evaluated every "
        "second round, kernels as the package chooses them; `uplink: delta`",
        differences=_AGAINST_PTQ,
        drawn=("w4a8-0.3",),
        tells_wall=True,
    ),
    "wide-mlp": Grid(
        (("w4a8", 0.3), ("w2a8", 0.05)),
        {"mlp-1024": _WIDE_MLP},
        _FASHION_256,
        num_clients=30,
        seeds=(3, 4, 5, 6, 7),
        trainer=_WIDE_MLP_TRAINER,
        allocators=("all-ptq", "all-qat-fake", "all-qat", "hybrid"),
        setting=_WIDE_MLP_SETTING,
        differences=_AGAINST_PTQ,
        drawn=("w4a8-0.3",),
        tells_wall=True,
    ),
    "int8-fleet": Grid(
        (("w4a8", 0.3),),
        {"vit": _VIT},
        _FASHION,
        num_clients=30,
        seeds=(0, 1),
        trainer={
            **{"max_rounds": 10, "clients_per_round": 6, "local_steps": 15, "eval_every_n_rounds": 2},
            "fleet": {"phone-snapdragon-855": 2, "laptop-ryzen-7-7840u": 1},
        },
        allocators=("all-ptq", "all-qat-fake", "all-qat", "hybrid"),
        setting="Fashion-MNIST, the vision transformer of *large-models*, 30 clients, 6 a round, 10 rounds, 15 local "
        "steps, batch 64, evaluated every second round, on a fleet in which every device has int8 kernels: two phones "
        "(Snapdragon 855) to every laptop (Ryzen 7 7840U)",
        differences=_AGAINST_PTQ,
    ),
    "delta-mlp": Grid(
        HARD_CELLS,
        {"mlp-1024": _WIDE_MLP},
        _FASHION_256,
        num_clients=30,
        seeds=(3, 4, 5, 6, 7),
        trainer={**_WIDE_MLP_TRAINER, "uplink": "delta"},
        allocators=("all-ptq", "hybrid"),
        setting=f"{_WIDE_MLP_SETTING}; `uplink: delta`",
        differences=(("hybrid", "all-ptq"),),
    ),
    "delta": replace(
        _SMALL,
        cells=HARD_CELLS,
        seeds=(8, 9, 10, 11, 12),
        trainer={**_SMALL_TRAINER, "uplink": "delta"},
        allocators=("all-ptq", "hybrid"),
        setting=f"{_SMALL_SETTING}, 500 images for validation and 500 for test; `uplink: delta`",
        differences=(("hybrid", "all-ptq"),),
        drawn=(),
    ),
    "batch-norm": Grid(
        (("w2a8", 0.5), ("w3a8", 0.5)),
        {"mobile": _MOBILE_BN, "resnet": _RESNET_BN},
        _CIFAR10,
        num_clients=25,
        seeds=(20, 21, 22),
        trainer={
            **{"max_rounds": 40, "clients_per_round": 10, "local_steps": 10, "eval_every_n_rounds": 4},
            "uplink": "delta",
        },
        allocators=("all-fp", "all-ptq", "all-qat", "free-qat", "late-qat", "hybrid"),
        setting="CIFAR-10 (50,000 images for training; of the test split 5,000 for validation, 5,000 for test), a "
        "MobileNetV2 of width 16 and a ResNet-20 of width 8, both with BatchNorm, 25 clients, 10 a round, 40 rounds, "
        "10 local steps, batch 32, SGD with momentum 0.9 and learning rate 0.2 (better than 0.1 on the validation "
        "images of seed 100, in all-PTQ and all-QAT of the MobileNetV2 at `w2a8`), evaluated every fourth round, batch "
        "statistics of the deployed model retaken in every arm, kernels as the package chooses them; `uplink: delta`",
        differences=(
            *(("hybrid", other) for other in ("all-ptq", "all-qat", "free-qat", "late-qat")),
            ("all-qat", "all-ptq"),
        ),
        drawn=("mobile-w2a8-0.5", "resnet-w2a8-0.5"),
    ),
    "small-delta": replace(
        _SMALL,
        seeds=(13, 14, 15),
        trainer={**_SMALL_TRAINER, "uplink": "delta"},
        allocators=("all-ptq", "all-qat-fake", "coarse", "hybrid"),
        setting=f"{_SMALL_SETTING}; `uplink: delta`",
        differences=(("hybrid", "all-ptq"), ("coarse", "all-ptq"), ("all-qat-fake", "all-ptq"), ("hybrid", "coarse")),
        drawn=("w2a8-0.3",),
    ),
}
