"""FedDyn against its paper's Algorithm 1, written out in float64."""

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedDyn

from ...small_federation import SmallData, SmallModule
from ...trainer.runs import fit, records
from .plain_rounds import Weights, batches, check_is, cohorts_of, initial_weights, mean, plus, scaled

RATE, EPOCHS = 0.1, 2


def by_the_paper(cohorts: list[list[int]], data: SmallData, alpha: float) -> Weights:
    """Rounds of these clients, with means by examples."""
    x = initial_weights()
    h = scaled(x, 0.0)
    kept = {client: h for client in data.client_ids}
    total = sum(data.sizes.values())
    for number, cohort in enumerate(cohorts, start=1):
        ends = []
        for client in cohort:
            y = x
            for gradients in batches(data, 0, number, client, EPOCHS):
                bent = plus(plus(gradients(y), kept[client], -1.0), plus(y, x, -1.0), alpha)
                y = plus(y, bent, -RATE)
            kept[client] = plus(kept[client], plus(y, x, -1.0), -alpha)
            ends.append(y)
        examples = sum(data.sizes[client] for client in cohort)
        found = mean(ends, [data.sizes[client] / examples for client in cohort])
        h = plus(h, plus(found, x, -1.0), -alpha * examples / total)
        x = plus(found, h, -1 / alpha)
    return x


@pytest.mark.parametrize("alpha", [0.01, 0.5])
@pytest.mark.parametrize("clients_per_round", [None, 2])
def test_is_the_papers(clients_per_round: int | None, alpha: float) -> None:
    module, data = SmallModule(lr=RATE, momentum=0.0), SmallData()
    settings = {"max_rounds": 4, "clients_per_round": clients_per_round, "local_epochs": EPOCHS}
    done, state = fit(module, data, aggregator=FedDyn(alpha), **settings)
    check_is(module, state, by_the_paper(cohorts_of(done), data, alpha))


def test_sends_nothing_beside_the_model() -> None:
    done, plain = fit(aggregator=FedDyn(), max_rounds=1)[0], fit(max_rounds=1)[0]
    assert records(done)[1].uplink_bytes == records(plain)[1].uplink_bytes
    assert records(done)[1].downlink_bytes == records(plain)[1].downlink_bytes


@pytest.mark.parametrize("alpha", [0, -1, float("nan")])
def test_refuses_what_is_not_above_zero(alpha: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"FedDyn alpha {alpha}: must be above 0"):
        FedDyn(alpha)
