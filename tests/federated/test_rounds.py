"""The parts of the round loop that are functions; the loop itself is tested in tests/test_trainer.py."""

import math
from dataclasses import replace

import pytest

from fedhq_lightning.federated.round_lr import learning_rate_scale
from fedhq_lightning.federated.rounds import train_metrics
from fedhq_lightning.run.records import ClientRecord

from ..run.test_records import CLIENT


def client(num_examples: int, num_steps: int = 3, **metrics: float) -> ClientRecord:
    return replace(CLIENT, num_examples=num_examples, num_steps=num_steps, metrics=metrics)


def test_constant() -> None:
    assert [learning_rate_scale("constant", number, 7) for number in (1, 4, 7)] == [1.0, 1.0, 1.0]


def test_linear_goes_towards_zero_and_never_reaches_it() -> None:
    assert [learning_rate_scale("linear", number, 4) for number in range(1, 5)] == [1.0, 0.75, 0.5, 0.25]


def test_cosine() -> None:
    factors = [learning_rate_scale("cosine", number, 8) for number in range(1, 9)]
    assert factors[0] == 1.0
    assert factors[4] == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert factors[-1] > 0


def test_factor_per_round() -> None:
    assert [learning_rate_scale(0.5, number, 3) for number in (1, 2, 3)] == [1.0, 0.5, 0.25]


def test_train_metrics_are_weighted_by_examples() -> None:
    clients = [client(10, loss=1.0, accuracy=0.5), client(30, loss=2.0), client(20, loss=4.0, accuracy=0.8)]
    assert train_metrics(clients) == {
        "train/loss": pytest.approx((10 + 60 + 80) / 60),
        "train/accuracy": pytest.approx((5 + 16) / 30),
    }


def test_train_metrics_leave_out_clients_that_did_not_train() -> None:
    assert train_metrics([client(10, loss=1.0), client(1000, num_steps=0, loss=9.0)]) == {"train/loss": 1.0}
    assert train_metrics([]) == {}
    assert train_metrics([client(10, num_steps=0)]) == {}


def test_train_metrics_leave_out_what_was_not_aggregated() -> None:
    quarantined = replace(client(10, loss=math.nan), status="quarantined")
    assert train_metrics([client(10, loss=1.0), quarantined]) == {"train/loss": 1.0}


def test_train_metrics_do_not_depend_on_the_order() -> None:
    clients = [client(count, loss=0.1 * count) for count in (3, 7, 11, 13, 1_000_003)]
    assert train_metrics(clients) == train_metrics(clients[::-1])
