import math

import pytest

from fedhq_lightning.run.evaluated_clients import (
    ClientsEvaluation,
    EvaluatedClient,
    group_means,
    metric_of,
    statistics,
)
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.types import Mode, Plan


def client(number: int, value: float, weight: int = 1, mode: Mode | None = "ptq") -> EvaluatedClient:
    return EvaluatedClient(number, f"tier {number % 2}", mode, weight, {"fp/accuracy": value})


CLIENTS = tuple(client(number, number / 20, 1 + number) for number in range(20))


class TestStatistics:
    def test_are_those_of_the_clients(self) -> None:
        found = statistics(CLIENTS, "fp/accuracy", "max")
        assert found["mean"] == pytest.approx(0.475)
        weights = range(1, 21)
        assert found["weighted_mean"] == pytest.approx(sum(w * (w - 1) / 20 for w in weights) / sum(weights))
        assert found["worst_decile"] == pytest.approx((0.0 + 0.05) / 2)
        assert found["spread"] == pytest.approx(math.sqrt(sum((n / 20 - 0.475) ** 2 for n in range(20)) / 20))

    def test_the_worst_are_the_largest_where_smaller_is_better(self) -> None:
        assert statistics(CLIENTS, "fp/accuracy", "min")["worst_decile"] == pytest.approx((0.95 + 0.9) / 2)

    def test_one_client_at_least_is_the_worst_tenth(self) -> None:
        assert statistics(CLIENTS[3:6], "fp/accuracy", "max")["worst_decile"] == 3 / 20
        assert statistics(CLIENTS[:11], "fp/accuracy", "max")["worst_decile"] == pytest.approx(0.025)

    def test_without_a_direction_nobody_is_worst(self) -> None:
        assert set(statistics(CLIENTS, "fp/accuracy")) == {"mean", "weighted_mean", "spread"}

    def test_leaves_out_what_is_no_number(self) -> None:
        odd = (client(30, math.nan), client(31, math.inf))
        assert statistics(CLIENTS + odd, "fp/accuracy", "max") == statistics(CLIENTS, "fp/accuracy", "max")
        assert all(math.isnan(value) for value in statistics(odd, "fp/accuracy", "max").values())

    def test_order_changes_no_bit(self) -> None:
        values = [client(number, 0.1 * 3**number, 7 * number + 1) for number in range(40)]
        assert statistics(values, "fp/accuracy", "max") == statistics(values[::-1], "fp/accuracy", "max")


def test_means_of_tiers_and_modes() -> None:
    clients = (client(0, 0.2, mode=None), client(1, 0.4, 9), client(2, 0.6, mode="qat"))
    assert group_means(clients) == {
        "fp/accuracy/tier/tier 0": pytest.approx(0.4),
        "fp/accuracy/tier/tier 1": 0.4,
        "fp/accuracy/mode/ptq": 0.4,
        "fp/accuracy/mode/qat": 0.6,
        "fp/accuracy/mode/untrained": 0.2,
    }


def test_metrics_are_named_by_view_metric_and_statistic() -> None:
    found = ClientsEvaluation(CLIENTS).metrics({"accuracy": "max"})
    assert set(found) == {f"fp/clients/accuracy/{name}" for name in ("mean", "weighted_mean", "worst_decile", "spread")}
    assert "fp/clients/accuracy/worst_decile" not in ClientsEvaluation(CLIENTS).metrics({})


def test_the_metric_of_a_figure() -> None:
    assert metric_of("clients/val/accuracy/worst_decile") == "val/accuracy"
    assert metric_of("val/accuracy/mean") == "val/accuracy/mean"
    assert metric_of("clients/accuracy/median") == "clients/accuracy/median"


def test_a_record_holds_it_and_its_cost() -> None:
    evaluation = ClientsEvaluation(
        (client(1, math.nan), client(2, 0.5)), 3, 1.5, 100, 2000, {"fp/accuracy/tier/x": math.nan}
    )
    times = {"wall_seconds": 1.0, "fit_wall_seconds": 0.5, "allocator_seconds": 0.0, "virtual_seconds": 2.0}
    record = RoundRecord.of_clients(1, Plan({}), [], {}, (0.0, 10.0), **times, evaluation=evaluation)
    assert (record.virtual_seconds, record.total_virtual_seconds) == (3.5, 13.5)
    assert (record.uplink_bytes, record.downlink_bytes) == (100, 2000)
    read = RoundRecord.from_json(record.to_json())
    assert read.evaluation is not None
    assert str(read.evaluation) == str(evaluation)  # NaN equals nothing
    kept = record.without_clients().evaluation
    assert kept is not None
    assert (kept.clients, kept.without, kept.virtual_seconds) == ((), 3, 1.5)
