"""What one client leaves in a resident module is gone for the next."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchmetrics import MaxMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from fedhq_lightning.local.module_state import reset_metrics

from ..small_federation import SmallModule


class Remembers(Metric):
    """Keeps something that is no state, and forgets it in a `reset` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def update(self) -> None:
        pass

    def compute(self) -> int:
        return self.seen

    def reset(self) -> None:
        super().reset()
        self.seen = 0


def fill_list(metric: Any) -> None:
    metric.tp.append(torch.ones(1))


DIRTY: dict[str, tuple[Callable[[], Metric], Callable[[Any], Any]]] = {
    "updated": (MaxMetric, lambda metric: metric.update(3.0)),
    "called": (lambda: MulticlassAccuracy(2), lambda metric: metric(torch.tensor([1]), torch.tensor([1]))),
    "computed without": (MaxMetric, lambda metric: metric.compute()),
    "a state set by hand": (MaxMetric, lambda metric: metric.max_value.add_(float("inf")).add_(1.0)),
    "another tensor": (MaxMetric, lambda metric: setattr(metric, "max_value", torch.ones(3))),
    "another dtype": (MaxMetric, lambda metric: setattr(metric, "max_value", metric.max_value.double())),
    "a list filled by hand": (lambda: MulticlassAccuracy(2, multidim_average="samplewise"), fill_list),
    "a reset of its own": (Remembers, lambda metric: setattr(metric, "seen", 5)),
}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("name", DIRTY)
def test_a_metric_is_emptied(name: str) -> None:
    make, use = DIRTY[name]
    module, fresh = SmallModule(), make()
    module.more = make()
    use(module.more)
    reset_metrics(module)
    assert module.more.update_count == 0
    assert module.more._computed is None
    assert getattr(module.more, "seen", 0) == 0
    assert module.more.metric_state.keys() == fresh.metric_state.keys()
    for key, value in fresh.metric_state.items():
        held: Any = module.more.metric_state[key]
        if isinstance(value, torch.Tensor):
            assert held.dtype == value.dtype
            assert torch.equal(held, value)
        else:
            assert held == value == []


def test_an_empty_one_is_left_alone() -> None:
    module = SmallModule()
    module.more = MulticlassAccuracy(2, multidim_average="samplewise")
    states = module.more.metric_state
    reset_metrics(module)
    assert all(held is states[key] for key, held in module.more.metric_state.items())
