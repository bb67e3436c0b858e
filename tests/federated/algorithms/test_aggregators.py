"""What every aggregator keeps to, and what each does."""

import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import algorithms
from fedhq_lightning.federated.algorithms import (
    Aggregator,
    FedAdagrad,
    FedAdam,
    FedAsync,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedDyn,
    FedNova,
    FedOpt,
    FedProx,
    FedYogi,
    Scaffold,
)
from fedhq_lightning.federated.algorithms.aggregator import ClientStart, Gathered
from fedhq_lightning.federated.algorithms.fed_opt import OptimizerFactory
from fedhq_lightning.testing import AggregatorContract
from fedhq_lightning.testing.made_states import PARAMETERS, global_state, mean_of_clients

from ...small_federation import same_bits

SGD: OptimizerFactory = partial(torch.optim.SGD, lr=1.0, momentum=0.9)
ADAM: OptimizerFactory = partial(torch.optim.Adam, lr=0.01)
AGGREGATORS: dict[str, Callable[[], Aggregator]] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(mu=0.1),
    "SCAFFOLD": Scaffold,
    "FedNova": FedNova,
    "FedDyn": FedDyn,
    "FedBuff": FedBuff,
    "FedAsync": FedAsync,
    "FedAvgM": FedAvgM,
    "FedAdagrad": FedAdagrad,
    "FedAdam": FedAdam,
    "FedYogi": FedYogi,
    "FedOpt with Adam": lambda: FedOpt(ADAM),
    "FedOpt with AdamW": lambda: FedOpt(partial(torch.optim.AdamW, lr=0.1, amsgrad=True)),
    "FedOpt with Adagrad": lambda: FedOpt(partial(torch.optim.Adagrad, lr=0.1)),
}


class TestEveryAggregator(AggregatorContract):
    @pytest.fixture(autouse=True, params=AGGREGATORS.values(), ids=AGGREGATORS.keys())
    def _shipped(self, request: pytest.FixtureRequest) -> None:
        self._make = request.param

    def make(self) -> Aggregator:
        return self._make()


def test_every_aggregator_is_listed() -> None:
    public = [getattr(algorithms, name) for name in algorithms.__all__]
    concrete = {each for each in public if not inspect.isabstract(each)}
    assert concrete == {type(make()) for make in AGGREGATORS.values()}


def test_fedavg_is_the_mean() -> None:
    following = FedAvg().step(global_state(), Gathered(mean_of_clients(), PARAMETERS))
    assert same_bits(following, global_state(1) | {"num_batches_tracked": torch.tensor(0)})


@pytest.mark.parametrize("mu", [0.0, 0.01, 3.0])
def test_fedprox_adds_the_gradient_of_the_proximal_term(mu: float) -> None:
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(6, 5)
    anchors = [parameter.detach().clone() for parameter in module.parameters()]
    term = FedProx(mu).client_term(ClientStart(module))
    with torch.no_grad():  # somewhere else than at the start
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))

    module(inputs).square().mean().backward()
    term.before_step(torch.optim.SGD(module.parameters(), lr=0.1))
    got = [parameter.grad for parameter in module.parameters()]

    distance = sum((p - a).square().sum() for p, a in zip(module.parameters(), anchors, strict=True))
    loss = module(inputs).square().mean() + mu / 2 * distance
    wanted = torch.autograd.grad(loss, list(module.parameters()))
    for mine, reference in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_fedprox_skips_parameters_without_gradient() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    term = FedProx(0.1).client_term(ClientStart(module))
    term.before_step(torch.optim.SGD(module.parameters(), lr=0.1))
    assert all(parameter.grad is None for parameter in module.parameters())


def test_fedprox_refuses_a_negative_mu() -> None:
    with pytest.raises(ConfigurationError, match=r"mu -0.1: must be >= 0"):
        FedProx(-0.1)


@pytest.mark.parametrize("factory", [SGD, ADAM, partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1)])
def test_fedopt_is_the_optimizer_over_the_pseudo_gradient(factory: OptimizerFactory) -> None:
    aggregator, state = FedOpt(factory), {"weight": global_state()["weight"]}
    reference = nn.Parameter(state["weight"].clone())
    optimizer = factory([reference])
    for number in range(1, 6):
        mean = {"weight": mean_of_clients(number)["weight"]}
        reference.grad = reference.detach() - mean["weight"]
        optimizer.step()
        state = aggregator.step(state, Gathered(mean, frozenset({"weight"})))
        assert same_bits(state, {"weight": reference.detach()})


def test_fedopt_with_plain_sgd_of_rate_one_is_fedavg() -> None:
    aggregator = FedOpt(partial(torch.optim.SGD, lr=1.0))
    following = aggregator.step(global_state(), Gathered(mean_of_clients(), PARAMETERS))
    for name, value in FedAvg().step(global_state(), Gathered(mean_of_clients(), PARAMETERS)).items():
        torch.testing.assert_close(following[name], value)
