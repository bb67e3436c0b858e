"""The lanes' quality: one model, trained centrally on MNIST-5k from five seeds in every lane."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhq_lightning.data.mnist5k import MNIST5k
from fedhq_lightning.quantize.conversion import convert
from fedhq_lightning.quantize.lane_options import LaneOptions
from fedhq_lightning.quantize.lanes import prepare
from fedhq_lightning.quantize.scheme import QuantScheme
from fedhq_lightning.types import Mode

SEEDS = range(5)
NUM_EPOCHS = 6
BATCH_SIZE = 64


@cache
def mnist5k() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = MNIST5k(batch_size=4000)
    data.prepare_data()
    data.setup("fit")
    train = [torch.utils.data.default_collate([data.train_dataset[i] for i in range(len(data.train_dataset))])]
    held_out = [torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True)]
    return (*train[0], *held_out)


def scheme(text: str) -> QuantScheme:
    return QuantScheme(text, edge_bits=None)


@cache
def trained(mode: Mode, text: str, seed: int) -> nn.Module:
    images, targets, *_ = mnist5k()
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    # int8 in every layer, also where it would not be faster.
    prepare(model, mode, scheme(text), LaneOptions(qat_kernel="int8", layer_kernels={"ptq": {"*": "int8"}}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(NUM_EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 if epoch < NUM_EPOCHS - 2 else 0.005  # where an epoch ends would else be luck
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), targets[chosen]).backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module) -> float:
    """In points, on the 1,000 images held out."""
    *_, images, targets = mnist5k()
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == targets).float().mean())


def mean_accuracy(mode: Mode, text: str, deployed: bool) -> float:
    models = [copy.deepcopy(trained(mode, "w4a8" if mode != "qat" else text, seed)) for seed in SEEDS]
    if deployed:
        models = [convert(model, scheme(text)) for model in models]
    return sum(map(accuracy, models)) / len(models)


@pytest.mark.corner
def test_ptq_is_within_a_point_of_fp32_before_rounding() -> None:
    plain, int8 = mean_accuracy("fp", "w4a8", False), mean_accuracy("ptq", "w4a8", False)
    assert plain > 93
    assert int8 > plain - 1.0
    assert not torch.equal(trained("fp", "w4a8", 0)[1].weight, trained("ptq", "w4a8", 0)[1].weight)


@pytest.mark.corner
def test_qat_beats_ptq_after_rounding_to_two_bits() -> None:
    assert mean_accuracy("qat", "w2a8", True) > mean_accuracy("ptq", "w2a8", True) + 0.5
