"""What every aggregator keeps to, and what each does."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.aggregators import Aggregator, FedAvg, FedOpt, FedProx, OptimizerFactory
from fedhq_lightning.types import StateDict

from ..small_federation import same_bits

SGD: OptimizerFactory = partial(torch.optim.SGD, lr=1.0, momentum=0.9)
ADAM: OptimizerFactory = partial(torch.optim.Adam, lr=0.01)
AGGREGATORS: dict[str, Callable[[], Aggregator]] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(mu=0.1),
    "FedAvgM": lambda: FedOpt(SGD),
    "FedAdam": lambda: FedOpt(ADAM),
    "FedOpt with AdamW": lambda: FedOpt(partial(torch.optim.AdamW, lr=0.1, amsgrad=True)),
    "FedOpt with Adagrad": lambda: FedOpt(partial(torch.optim.Adagrad, lr=0.1)),
}
PARAMETERS = frozenset({"weight", "bias", "tied", "half"})


def global_state(seed: int = 0) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, generator=generator)
    return {
        "weight": weight,
        "bias": torch.randn(4, generator=generator),
        "tied": weight.clone(),
        "half": torch.randn(2, generator=generator).bfloat16(),
        "running_mean": torch.randn(4, generator=generator),
        "num_batches_tracked": torch.tensor(seed),
    }


def mean_of_clients(seed: int = 1) -> StateDict:
    return {name: value.float() for name, value in global_state(seed).items() if value.is_floating_point()}


@pytest.mark.parametrize("make", AGGREGATORS.values(), ids=AGGREGATORS.keys())
class TestEveryAggregator:
    def test_keeps_names_shapes_and_dtypes(self, make: Callable[[], Aggregator]) -> None:
        current = global_state()
        following = make().step(current, mean_of_clients(), PARAMETERS)
        assert list(following) == list(current)
        for name, value in following.items():
            assert (value.shape, value.dtype) == (current[name].shape, current[name].dtype), name
            assert not value.requires_grad

    def test_buffers_take_the_mean_and_integers_stay(self, make: Callable[[], Aggregator]) -> None:
        following = make().step(global_state(), mean_of_clients(), PARAMETERS)
        assert torch.equal(following["running_mean"], mean_of_clients()["running_mean"])
        assert torch.equal(following["num_batches_tracked"], torch.tensor(0))

    def test_what_the_clients_do_not_send_stays(self, make: Callable[[], Aggregator]) -> None:
        aggregator, state = make(), global_state()
        for number in range(1, 4):
            mean = mean_of_clients(number)
            del mean["bias"], mean["running_mean"]
            state = aggregator.step(state, mean, PARAMETERS)
        unsent = ("bias", "running_mean")
        assert same_bits({name: state[name] for name in unsent}, {name: global_state()[name] for name in unsent})

    def test_inputs_are_not_changed(self, make: Callable[[], Aggregator]) -> None:
        current, mean = global_state(), mean_of_clients()
        aggregator = make()
        following = aggregator.step(current, mean, PARAMETERS)
        kept = {name: value.clone() for name, value in following.items()}
        aggregator.step(following, mean_of_clients(2), PARAMETERS)
        assert same_bits(current, global_state())
        assert same_bits(mean, mean_of_clients())
        assert same_bits(following, kept)

    def test_tied_weights_stay_alike(self, make: Callable[[], Aggregator]) -> None:
        aggregator, state = make(), global_state()
        for number in range(1, 4):
            state = aggregator.step(state, mean_of_clients(number), PARAMETERS)
            assert torch.equal(state["weight"], state["tied"])

    def test_moves_towards_the_mean(self, make: Callable[[], Aggregator]) -> None:
        current, mean = global_state(), mean_of_clients()
        moved = make().step(current, mean, PARAMETERS)["weight"] - current["weight"]
        assert ((moved * (mean["weight"] - current["weight"])).sum() > 0).item()

    def test_a_saved_state_continues_bitwise(self, make: Callable[[], Aggregator]) -> None:
        unbroken, state = make(), global_state()
        for number in range(1, 4):
            state = unbroken.step(state, mean_of_clients(number), PARAMETERS)
        resumed = make()
        resumed.load_state_dict(copy.deepcopy(unbroken.state_dict()))
        other = {name: value.clone() for name, value in state.items()}
        for number in range(4, 7):
            state = unbroken.step(state, mean_of_clients(number), PARAMETERS)
            other = resumed.step(other, mean_of_clients(number), PARAMETERS)
            assert same_bits(state, other)

    def test_state_survives_a_checkpoint(self, make: Callable[[], Aggregator], tmp_path: object) -> None:
        aggregator = make()
        fresh = aggregator.state_dict()
        aggregator.load_state_dict(fresh)
        aggregator.step(global_state(), mean_of_clients(), PARAMETERS)
        path = f"{tmp_path}/state"
        torch.save(aggregator.state_dict(), path)
        make().load_state_dict(torch.load(path, weights_only=True))

    def test_the_clients_term_leaves_the_weights_alone(self, make: Callable[[], Aggregator]) -> None:
        module = nn.Linear(3, 2)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        term = make().client_term(module)
        if term is not None:
            module(torch.ones(1, 3)).sum().backward()
            term()
        assert same_bits(module.state_dict(), before)


def test_fedavg_is_the_mean() -> None:
    following = FedAvg().step(global_state(), mean_of_clients(), PARAMETERS)
    assert same_bits(following, global_state(1) | {"num_batches_tracked": torch.tensor(0)})


@pytest.mark.parametrize("mu", [0.0, 0.01, 3.0])
def test_fedprox_adds_the_gradient_of_the_proximal_term(mu: float) -> None:
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(6, 5)
    anchors = [parameter.detach().clone() for parameter in module.parameters()]
    term = FedProx(mu).client_term(module)
    with torch.no_grad():  # somewhere else than at the start
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))

    module(inputs).square().mean().backward()
    if term is not None:
        term()
    got = [parameter.grad for parameter in module.parameters()]

    distance = sum((p - a).square().sum() for p, a in zip(module.parameters(), anchors, strict=True))
    loss = module(inputs).square().mean() + mu / 2 * distance
    wanted = torch.autograd.grad(loss, list(module.parameters()))
    for mine, reference in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_fedprox_skips_parameters_without_gradient() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    term = FedProx(0.1).client_term(module)
    assert term is not None
    term()
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
        state = aggregator.step(state, mean, frozenset({"weight"}))
        assert same_bits(state, {"weight": reference.detach()})


def test_fedopt_with_plain_sgd_of_rate_one_is_fedavg() -> None:
    aggregator = FedOpt(partial(torch.optim.SGD, lr=1.0))
    following = aggregator.step(global_state(), mean_of_clients(), PARAMETERS)
    for name, value in FedAvg().step(global_state(), mean_of_clients(), PARAMETERS).items():
        torch.testing.assert_close(following[name], value)
