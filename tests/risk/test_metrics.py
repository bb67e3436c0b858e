"""The metrics against their functions and against each other's parts."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.risk import LabelCoverage, LabelDivergence, NoiseToSignalRatio, label_coverage, label_divergence

MIX = torch.tensor([50, 30, 20, 0])
LABELS = [torch.tensor([0, 0, 1]), torch.tensor([[2, 0], [1, 1]]), torch.tensor([], dtype=torch.int64)]
COUNTS = torch.tensor([3, 3, 1, 0])
METRICS: list[tuple[Any, Any]] = [
    *((LabelDivergence(MIX, each), label_divergence(COUNTS, MIX, each)) for each in ("total_variation", "hellinger")),
    *((LabelCoverage(MIX, each), label_coverage(COUNTS, MIX, each)) for each in ("classes", "mass")),
]


@pytest.mark.parametrize(("metric", "expected"), METRICS)
def test_label_metrics_are_their_functions(metric: Any, expected: float) -> None:
    metric = copy.deepcopy(metric)
    for labels in LABELS:
        metric.update(labels)
    assert metric.compute().item() == pytest.approx(expected)
    again = pickle.loads(pickle.dumps(metric))
    assert torch.equal(again.compute(), metric.compute())
    metric.reset()
    assert metric.counts.sum() == 0


def reduced(parts: list[Any]) -> Any:
    """What torchmetrics makes of the states of several processes: each through its reduction."""
    whole = copy.deepcopy(parts[0])
    for name, reduce in whole._reductions.items():
        setattr(whole, name, reduce(torch.stack([getattr(part, name) for part in parts])))
    return whole


@pytest.mark.parametrize("metric", [metric for metric, _ in METRICS])
def test_label_metrics_of_processes_add_up(metric: Any) -> None:
    whole, parts = copy.deepcopy(metric), [copy.deepcopy(metric) for _ in LABELS]
    for labels, part in zip(LABELS, parts, strict=True):
        whole.update(labels)
        part.update(labels)
    assert torch.equal(reduced(parts).compute(), whole.compute())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 4]), "labels 0 to 4; the reference has classes 0 to 3"),
        (torch.tensor([-1]), "labels -1 to -1"),
        (torch.tensor([0.0]), "labels of torch.float32"),
    ],
)
def test_bad_labels(labels: Tensor, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LabelDivergence(MIX).update(labels)


def test_what_is_wrong_shows_when_it_is_made() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'hellinger'"):
        LabelDivergence(MIX, "helinger")  # type: ignore[arg-type]  # the point
    with pytest.raises(ConfigurationError, match="did you mean 'mass'"):
        LabelCoverage(MIX, "mas")  # type: ignore[arg-type]  # the point
    with pytest.raises(ConfigurationError, match="reference label counts are all zero"):
        LabelDivergence(torch.zeros(3))
    nothing = LabelDivergence(MIX)
    nothing.update(LABELS[2])
    with pytest.raises(ConfigurationError, match="client's label counts are all zero"):
        nothing.compute()


def test_noise_to_signal_is_the_sqnr_in_other_words() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(40, 7, generator=generator)
    noisy = exact + 0.1 * torch.randn(40, 7, generator=generator)
    sqnr = 10 * math.log10(exact.double().square().sum() / (noisy.double() - exact.double()).square().sum())
    parts = [NoiseToSignalRatio() for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 13), slice(13, 40)), strict=True):
        part.update(noisy[rows], exact[rows])
    assert reduced(parts).compute().item() == pytest.approx(10 ** (-sqnr / 10), rel=1e-12)


def test_noise_to_signal_at_its_ends() -> None:
    def of(noisy: list[float], exact: list[float]) -> float:
        metric = NoiseToSignalRatio()
        metric.update(torch.tensor(noisy), torch.tensor(exact))
        return metric.compute().item()

    assert of([0.0, 0.0], [0.0, 0.0]) == 0.0
    assert of([1.0, 0.0], [0.0, 0.0]) == math.inf
    assert math.isnan(of([math.nan, 0.0], [1.0, 0.0]))
    assert of([1e30, 0.0], [2e30, 0.0]) == 0.25, "powers of fp32 numbers must not overflow"
    with pytest.raises(ConfigurationError, match="against an output"):
        NoiseToSignalRatio().update(torch.zeros(2), torch.zeros(3))
