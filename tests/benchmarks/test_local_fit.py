"""The benchmark of a local fit: it measures three ways of one fit, and its rows say what was measured."""

import local_fit
import pytest
import torch

from fedhq_lightning.models import MLP
from fedhq_lightning.profiling.timing import Timing

SMALL = local_fit.Case(lambda: MLP(image_size=8, hidden_sizes=(4,)), (1, 8, 8), 3)


def test_the_row():
    timings = {"bare": Timing((0.004, 0.01)), "ours": Timing((0.02, 0.02)), "theirs": Timing((0.1,))}
    assert local_fit.row_of("MLP", timings) == ["MLP", "7.0", "20.0", "100.0", "0.350", "1.000", "250 % (175 to 325)"]


def test_the_row_of_clients():
    assert local_fit.client_row_of("MLP", [0.003, 0.004, 0.009], [0.001, 0.0025, 0.003]) == [
        "MLP",
        "4.00",
        "2.50",
        "1.50",
    ]


# Lightning's advice, and a deprecation of torch's that Lightning runs into.
@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*defined a `validation_step`", "ignore:.*LeafSpec"
)
def test_a_small_fit_is_measured():
    found = local_fit.measure(SMALL, steps=2, rounds=1, block_seconds=1e-6)
    assert list(found) == ["bare", "ours", "theirs"]
    assert all(timing.seconds > 0 for timing in found.values())


def test_clients_are_measured():
    clients, bare = local_fit.measure_clients(SMALL, clients=3, batches=2, rounds=2)
    assert len(clients) == len(bare) == 6
    assert all(seconds > 0 for seconds in clients + bare)


def test_the_models_take_their_batches():
    for case in [*local_fit.CASES.values(), *local_fit.CLIENT_CASES.values()]:
        (images, labels), *others = case.batches(2)
        assert len(others) == 1
        assert images.shape == (case.batch_size, *case.shape)
        assert torch.isfinite(case.make().loss(case.make()(images), labels))
