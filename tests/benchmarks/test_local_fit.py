"""The benchmark of a local fit: it measures three ways of one fit, and its row says what was measured."""

import local_fit
import pytest

from fedhq_lightning.models import MLP
from fedhq_lightning.profiling.timing import Timing


def test_the_row():
    timings = {"bare": Timing((0.004, 0.01)), "ours": Timing((0.02,)), "theirs": Timing((0.1,))}
    assert local_fit.row_of("MLP", timings) == ["MLP", "7.0", "20.0", "100.0", "0.350", "1.000"]


# Lightning's advice, and a deprecation of torch's that Lightning runs into.
@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*defined a `validation_step`", "ignore:.*LeafSpec"
)
def test_a_small_fit_is_measured():
    found = local_fit.measure(MLP, steps=2, rounds=1, block_seconds=1e-6)
    assert list(found) == ["bare", "ours", "theirs"]
    assert all(timing.seconds > 0 for timing in found.values())
