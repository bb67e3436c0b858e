import math
from types import SimpleNamespace

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.objectives import Objective, parse_objectives, totals


def test_directions():
    found = parse_objectives(["metric_quantized", "virtual_seconds", "worst_client.metric"], "max")
    assert [each.direction for each in found] == ["max", "min", "max"]
    assert [each.direction for each in parse_objectives("metric_fp", "min")] == ["min"]
    assert [each.direction for each in parse_objectives({"mode_counts.ptq": "max"}, "min")] == ["max"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("metric_quantised", "nobody logs 'metric_quantised'; .*metric_quantized, .*did you mean 'metric_quantized'"),
        (["late", "late"], "late is there twice"),
        ([], "give one or several of"),
        (3, "give one or several of"),
        ({"late": "less"}, "late: direction 'less'; allowed are min and max"),
    ],
)
def test_refuses(given, words):
    with pytest.raises(ConfigurationError, match=words):
        parse_objectives(given, "max")


def test_values():
    summary = {"metric_fp": 0.5, "late": math.nan, "mode_counts": {"qat": 3}, "worst_client": None}
    values = {name: Objective(name, "min").value(summary) for name in ("metric_fp", "late", "mode_counts.qat")}
    assert values == {"metric_fp": 0.5, "late": None, "mode_counts.qat": 3.0}
    assert Objective("worst_client.metric", "max").value(summary) is None


def test_totals_add_costs_and_take_the_latest_metric():
    objectives = parse_objectives(["metric_quantized", "uplink_bytes", "late"], "max")
    first = totals(objectives, SimpleNamespace(metric_quantized=0.3, uplink_bytes=10), {})
    assert first == {"metric_quantized": 0.3, "uplink_bytes": 10}
    assert totals(objectives, SimpleNamespace(metric_quantized=None, uplink_bytes=5), first) == {"uplink_bytes": 15}
