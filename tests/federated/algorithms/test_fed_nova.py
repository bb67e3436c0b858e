"""FedNova against its paper's equations, written out in float64."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from typing_extensions import override

from fedhq_lightning.allocation import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedAvg, FedNova
from fedhq_lightning.federated.algorithms.step_length import fit_length
from fedhq_lightning.federated.secure.secure_aggregation import SecureAggregation
from fedhq_lightning.types import ClientId, Plan

from ...small_federation import SmallData, SmallModule, trainer
from ...trainer.runs import fit, records
from .plain_rounds import Weights, batches, check_is, cohorts_of, initial_weights, mean, plus, scaled

RATE, EPOCHS = 0.1, 3


class Module(SmallModule):
    """Takes any argument of SGD."""

    def __init__(self, **sgd: Any) -> None:
        super().__init__(lr=RATE)
        self.sgd = sgd

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE, **self.sgd)


class Halves(FixedAllocator):
    """Clients of even numbers take half of their steps."""

    @override
    def propose(self, round_number: int, cohort: Sequence[ClientId]) -> Plan:
        return Plan(dict.fromkeys(cohort, "fp"), work={client: 0.5 for client in cohort if int(client) % 2 == 0})


def by_the_paper(cohorts: list[list[int]], data: SmallData, sgd: dict[str, Any], halves: bool) -> Weights:
    """Rounds of these clients; a_i found by what a constant gradient would come to."""
    x = initial_weights()
    for number, cohort in enumerate(cohorts, start=1):
        directions, lengths = [], []
        for client in cohort:
            steps = list(batches(data, 0, number, client, EPOCHS))
            y, length = _descend(x, list(islice(steps, len(steps) // (2 if halves and client % 2 == 0 else 1))), sgd)
            directions.append(scaled(plus(y, x, -1.0), 1 / length))
            lengths.append(length)
        examples = sum(data.sizes[client] for client in cohort)
        shares = [data.sizes[client] / examples for client in cohort]
        tau_eff = sum(share * length for share, length in zip(shares, lengths, strict=True))
        x = plus(x, mean(directions, shares), tau_eff)
    return x


def _descend(x: Weights, steps: list[Any], sgd: dict[str, Any]) -> tuple[Weights, float]:
    """Where torch's SGD in float64 ends, and how far it would have gone in steps of 1 with gradients of 1."""
    y = [value.clone().requires_grad_() for value in x]
    ones = [torch.zeros((), dtype=torch.float64, requires_grad=True)]
    local, counted = torch.optim.SGD(y, lr=RATE, **sgd), torch.optim.SGD(ones, lr=1.0, **(sgd | {"weight_decay": 0}))
    for gradients in steps:
        for parameter, gradient in zip(y, gradients([value.detach() for value in y]), strict=True):
            parameter.grad = gradient
        ones[0].grad = torch.ones((), dtype=torch.float64)
        local.step()
        counted.step()
    return [value.detach() for value in y], -float(ones[0].detach())


@pytest.mark.parametrize(
    "sgd",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"momentum": 0.8, "nesterov": True},
        {"momentum": 0.7, "dampening": 0.4},
    ],
    ids=["plain", "momentum", "nesterov", "dampening"],
)
@pytest.mark.parametrize("halves", [False, True])
def test_is_the_papers(sgd: dict[str, Any], halves: bool) -> None:
    module, data = Module(**sgd), SmallData()
    done, state = fit(
        *(module, data),
        aggregator=FedNova(),
        callbacks=[Halves("fp")] if halves else [],
        **{"max_rounds": 4, "clients_per_round": 3, "local_epochs": EPOCHS},
    )
    check_is(module, state, by_the_paper(cohorts_of(done), data, sgd, halves))


def test_of_fits_alike_it_is_fedavg() -> None:
    states = [fit(data=SmallData([16] * 4), aggregator=each)[1] for each in (FedNova(), FedAvg())]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-5, atol=1e-6)


def test_is_as_near_to_the_float_one_as_fedavg_on_a_grid() -> None:
    distances = []
    for aggregator in (FedNova(), FedAvg()):
        states = [
            fit(SmallModule(momentum=0.0), aggregator=aggregator, **more)[1]
            for more in ({}, {"scheme": "w8a8", "uplink": "delta"})
        ]
        difference = [(states[0][name] - value).norm() for name, value in states[1].items() if "net" in name]
        distances.append(torch.stack(difference).norm())
    assert distances[0] < 1.5 * distances[1]


def test_refuses_to_have_its_changes_rounded_away() -> None:
    with pytest.raises(ConfigurationError, match=r"FedNova and uplink: weights on a grid .* take uplink: delta"):
        trainer(aggregator=FedNova(), scheme="w4a8", uplink="weights")


def test_lengths_beyond_the_grid_of_secure_rounds_are_refused_before_round_1(tmp_path: Any) -> None:
    """Clients of 12 and 13 steps: with momentum 0.9 the longest fit is 62.9."""

    def run(max_value: float, momentum: float) -> Any:
        pytest.importorskip("cryptography")
        asked = SecureAggregation(threshold=2, max_value=max_value)
        settings = {"secure_aggregation": asked, "max_norm_ratio": None, "local_epochs": 1, "max_rounds": 1}
        data = SmallData([96, 100, 96], batch_size=8)
        return fit(SmallModule(0.01, momentum), data, aggregator=FedNova(), default_root_dir=tmp_path, **settings)[0]

    wanted = fit_length({"momentum": 0.9}, 13)
    assert wanted == pytest.approx(sum(10 * (1 - 0.9**step) for step in range(1, 14)))
    message = rf"aggregator FedNova and .*max_value 32: .*that of 13 steps is {wanted:.4g} here; set max_value to 64"
    with pytest.raises(ConfigurationError, match=message):
        run(32.0, 0.9)
    assert not list(tmp_path.glob("*/*"))
    for max_value, momentum in ((64.0, 0.9), (13.0, 0.0)):
        assert [client.status for client in records(run(max_value, momentum))[1].clients] == ["ok"] * 3
