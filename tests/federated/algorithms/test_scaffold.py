"""SCAFFOLD against its paper's Algorithm 1, written out in float64."""

import pytest
import torch

from fedhq_lightning.federated.algorithms import FedAvg, Scaffold

from ...small_federation import SmallData, SmallModule
from ...trainer.runs import fit, records
from .plain_rounds import Weights, batches, check_is, cohorts_of, initial_weights, mean, plus, scaled

RATE, EPOCHS = 0.2, 2


def by_the_paper(cohorts: list[list[int]], data: SmallData, momentum: float) -> Weights:
    """Rounds of these clients: option II, with means by examples; with momentum, of gradients as they were used."""
    x = initial_weights()
    c = scaled(x, 0.0)
    own = {client: c for client in data.client_ids}
    total = sum(data.sizes.values())
    for number, cohort in enumerate(cohorts, start=1):
        ends, changes = [], []
        for client in cohort:
            y, velocity, used, length = x, scaled(x, 0.0), 0.0, 0.0
            for gradients in batches(data, 0, number, client, EPOCHS):
                velocity = plus(plus(gradients(y), plus(c, own[client], -1.0)), velocity, momentum)
                y = plus(y, velocity, -RATE)
                used = 1 + momentum * used
                length += used
            new = plus(plus(own[client], c, -1.0), plus(x, y, -1.0), 1 / (length * RATE))
            changes.append(plus(new, own[client], -1.0))
            own[client] = new
            ends.append(y)
        examples = sum(data.sizes[client] for client in cohort)
        shares = [data.sizes[client] / examples for client in cohort]
        x, c = mean(ends, shares), plus(c, mean(changes, shares), examples / total)
    return x


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("clients_per_round", [None, 2])
def test_is_the_papers(clients_per_round: int | None, momentum: float) -> None:
    module, data = SmallModule(lr=RATE, momentum=momentum), SmallData()
    settings = {"max_rounds": 4, "clients_per_round": clients_per_round, "local_epochs": EPOCHS}
    done, state = fit(module, data, aggregator=Scaffold(), **settings)
    check_is(module, state, by_the_paper(cohorts_of(done), data, momentum))


def test_differs_from_fedavg_from_the_second_round() -> None:
    for rounds, is_same in ((1, True), (2, False)):
        states = [
            fit(SmallModule(momentum=0.0), max_rounds=rounds, aggregator=each)[1] for each in (Scaffold(), FedAvg())
        ]
        assert torch.equal(states[0]["net.0.weight"], states[1]["net.0.weight"]) == is_same


def test_control_variates_travel_in_float32_both_ways() -> None:
    done, plain = fit(aggregator=Scaffold(), max_rounds=1)[0], fit(max_rounds=1)[0]
    size = 4 * sum(parameter.numel() for parameter in SmallModule().parameters())
    for with_variates, without in zip(records(done)[1].clients, records(plain)[1].clients, strict=True):
        for name in ("uplink_bytes", "downlink_bytes"):
            extra = getattr(with_variates, name) - getattr(without, name)
            assert size <= extra <= size + 400  # the header tells of them too
        assert with_variates.virtual_seconds > without.virtual_seconds
