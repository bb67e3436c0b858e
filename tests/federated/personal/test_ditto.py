"""Ditto: a whole model of each client's own, held to the global one, against its paper's loop in float64."""

from typing import Any

import pytest
import torch

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedNova, Scaffold
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy

from ...small_federation import SmallData, SmallModule, same_bits
from ...trainer.runs import fit, records
from ..algorithms.plain_rounds import Weights, batches, initial_weights, mean, plus
from .test_personal_layers import NAMES, Normed, assert_near, own

RATE, EPOCHS = 0.2, 2


def by_the_paper(cohorts: list[list[int]], data: SmallData, strength: float) -> tuple[Weights, dict[int, Weights]]:
    """Algorithm 1 with local SGD as the solver of both objectives; a model begins as the first global one received."""
    shared, own_models = initial_weights(), dict[int, Weights]()
    for number, cohort in enumerate(cohorts, start=1):
        ends = []
        for client in cohort:
            weights, mine = shared, own_models.get(client, shared)
            for gradients in batches(data, 0, number, client, EPOCHS):
                weights = plus(weights, gradients(weights), -RATE)
            for gradients in batches(data, 0, number, client, EPOCHS, "own fit"):
                held = plus(gradients(mine), plus(mine, shared, -1.0), strength)
                mine = plus(mine, held, -RATE)
            ends.append(weights)
            own_models[client] = mine
        examples = sum(data.sizes[client] for client in cohort)
        shared = mean(ends, [data.sizes[client] / examples for client in cohort])
    return shared, own_models


def test_is_the_papers() -> None:
    module, data = SmallModule(lr=RATE, momentum=0.0), SmallData()
    done, state = fit(module, data, ditto=0.3, max_rounds=4, clients_per_round=2, local_epochs=EPOCHS)
    cohorts = [[int(client.client_id) for client in record.clients] for record in records(done)[1:]]
    shared, own_models = by_the_paper(cohorts, data, 0.3)
    assert_near(state, shared, NAMES)
    for client, weights in own_models.items():
        assert_near(own(done, client), weights, NAMES)


@pytest.mark.parametrize(
    "settings",
    [{}, {"scheme": "w4a8", "callbacks": "half"}, {"aggregator": Scaffold()}, {"aggregator": FedNova()}],
    ids=["plain", "lanes", "SCAFFOLD", "FedNova"],
)
def test_the_global_model_is_as_without_it(settings: dict[str, Any]) -> None:
    def run(strength: float | None) -> Any:
        own_settings = settings | ({"callbacks": [FixedAllocator(0.5)]} if "callbacks" in settings else {})
        return fit(Normed(), ditto=strength, max_rounds=3, clients_per_round=3, **own_settings)

    (with_it, state), (without, expected) = run(0.5), run(None)
    assert same_bits(state, expected)
    assert [record.metrics for record in records(with_it)] == [record.metrics for record in records(without)]
    took_part = {client.client_id for record in records(with_it) for client in record.clients}
    assert {client for client in range(4) if own(with_it, client)} == took_part


def test_its_second_fit_costs_virtual_time() -> None:
    with_it, without = (fit(ditto=strength, max_rounds=1)[0] for strength in (0.5, None))
    for more, less in zip(records(with_it)[1].clients, records(without)[1].clients, strict=True):
        assert more.compute_seconds == pytest.approx(2 * less.compute_seconds)
        assert more.uplink_bytes == less.uplink_bytes


def test_a_stronger_term_holds_nearer() -> None:
    def distance(strength: float) -> float:
        done, state = fit(SmallModule(lr=0.01, momentum=0.0), ditto=strength, max_rounds=3)
        return float(torch.stack([(own(done, 0)[name] - state[name]).norm() for name in NAMES]).norm())

    assert distance(50.0) < distance(0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ditto": -0.1}, r"ditto -0\.1: must be 0 or more"),
        ({"ditto": True}, "ditto True: must be 0 or more"),
        ({"ditto": 0.1, "personal_layers": "net.2"}, "ditto and personal_layers cannot be together"),
        (
            {"privacy": CentralPrivacy(1.0, clip_norm=1.0, delta=1e-3), "personal_layers": "net.2"},
            "privacy and personal_layers cannot be together",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(**settings)
