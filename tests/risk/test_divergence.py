import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.risk import LabelStatistics, label_coverage, label_divergence

MEASURES = ["total_variation", "hellinger", "jensen_shannon"]


def reference_value(p, q, measure):
    if measure == "total_variation":
        return 0.5 * sum(abs(a - b) for a, b in zip(p, q, strict=True))
    if measure == "hellinger":
        return math.sqrt(1 - sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)))
    return float(jensenshannon(p, q, base=2))


@pytest.mark.parametrize("measure", MEASURES)
def test_against_other_formulas(measure):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        counts = torch.randint(0, 50, (10,), generator=generator)
        reference = torch.randint(0, 5000, (10,), generator=generator)
        p, q = (counts / counts.sum()).double().tolist(), (reference / reference.sum()).double().tolist()
        assert label_divergence(counts, reference, measure) == pytest.approx(reference_value(p, q, measure), abs=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_ends_of_the_scale(measure):
    uniform = torch.full((10,), 3)
    assert label_divergence(uniform, 7 * uniform, measure) == pytest.approx(0.0, abs=1e-7)
    assert label_divergence(torch.tensor([4, 0]), torch.tensor([0, 9]), measure) == pytest.approx(1.0)
    assert label_divergence(torch.tensor([4, 0]), torch.tensor([0, 9]), measure) <= 1.0


@pytest.mark.parametrize("measure", MEASURES)
def test_symmetric_and_blind_to_size_and_dtype(measure):
    a, b = torch.tensor([1, 2, 3, 0]), torch.tensor([4, 0, 1, 1])
    value = label_divergence(a, b, measure)
    assert 0 < value < 1
    assert label_divergence(b, a, measure) == pytest.approx(value)
    assert label_divergence(100 * a, b.to(torch.float32) / 6, measure) == pytest.approx(value, abs=1e-6)


def test_known_value():
    assert label_divergence(torch.tensor([10, 0]), torch.tensor([1, 1])) == 0.5


@pytest.mark.parametrize(
    ("counts", "reference", "message"),
    [
        ([0, 0], [1, 1], "client's label counts are all zero"),
        ([1, 1], [0, 0], "reference label counts are all zero"),
        ([1, 1, 1], [1, 1], "3 classes against a reference of 2"),
        ([-1, 2], [1, 1], "negative"),
        ([float("nan"), 2.0], [1, 1], "non-finite"),
        ([[1, 1]], [1, 1], "shape"),
        ([], [], "shape"),
    ],
)
def test_bad_counts(counts, reference, message):
    with pytest.raises(ConfigurationError, match=message):
        label_divergence(torch.tensor(counts), torch.tensor(reference))


def test_unknown_measure_gets_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean 'hellinger'"):
        label_divergence(torch.tensor([1, 1]), torch.tensor([1, 1]), "helinger")  # type: ignore[arg-type]  # the point


def test_coverage():
    counts, mix = torch.tensor([3, 0, 1, 0, 0]), torch.tensor([10, 20, 30, 40, 0])
    assert label_coverage(counts, mix) == 0.5
    assert label_coverage(counts, mix, "mass") == pytest.approx(0.4)
    assert label_coverage(mix, mix) == label_coverage(mix, mix, "mass") == 1.0
    # A class that only the client has is no part of the federation's.
    assert label_coverage(torch.tensor([0, 0, 0, 0, 7]), mix) == label_coverage(mix * 0 + 1, mix, "mass") - 1 == 0.0
    with pytest.raises(ConfigurationError, match="did you mean 'classes'"):
        label_coverage(counts, mix, "clases")  # type: ignore[arg-type]  # the point


COUNTS = {"a": torch.tensor([4, 0]), "b": torch.tensor([1, 1]), "c": torch.tensor([1, 5])}


@pytest.mark.parametrize("measure", MEASURES)
def test_statistics_are_those_against_the_sum_of_all(measure):
    asked = []
    statistics = LabelStatistics(list(COUNTS), lambda client_id: asked.append(client_id) or COUNTS[client_id])
    assert asked == []
    for client_id, counts in COUNTS.items():
        assert statistics.divergence(client_id, measure) == label_divergence(counts, torch.tensor([6, 6]), measure)
    assert [statistics.coverage(each) for each in COUNTS] == [0.5, 1.0, 1.0]
    assert [statistics.size(each) for each in COUNTS] == pytest.approx([1.0, 0.5, 1.5])
    assert asked.count("c") == 4, "the mix is summed once, and no histogram is kept"
    assert COUNTS["a"].tolist() == [4, 0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "'b'. is None: client 'b' tells no labels.*updates"),
        (torch.tensor([1, 2, 3]), r"'b'. has shape \(3,\), that of client 'a' \(2,\)"),
        (torch.tensor([0, 0]), "'b'.: client's label counts are all zero"),
        (torch.tensor([-1, 2]), "'b'.: client's label counts hold a negative"),
    ],
)
def test_statistics_name_the_client_that_tells_no_labels(bad, message):
    counts = COUNTS | {"b": bad}
    statistics = LabelStatistics(list(counts), counts.__getitem__)
    with pytest.raises(ConfigurationError, match=message):
        statistics.divergence("b", "hellinger")
    if bad is None:
        with pytest.raises(ConfigurationError, match="'b'"):
            statistics.divergence("a", "hellinger")
