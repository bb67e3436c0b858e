"""FedAvgM, FedAdagrad, FedAdam and FedYogi against their papers, written out in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedAdagrad, FedAdam, FedAvgM, FedOpt, FedYogi
from fedhq_lightning.federated.algorithms.aggregator import Gathered
from fedhq_lightning.testing.made_states import PARAMETERS, global_state, mean_of_clients

from ...trainer.runs import fit

Step = Callable[[Tensor, Tensor], Tensor]
"""From a change to how the second moment moves."""


def by_reddi(rounds: int, lr: float, beta_1: float, tau: float, second: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Algorithm 2 of Reddi et al. 2021 for one weight."""
    x = global_state()["weight"].double()
    m, v = torch.zeros_like(x), torch.full_like(x, tau**2)
    for number in range(1, rounds + 1):
        delta = mean_of_clients(number)["weight"].double() - x
        m = beta_1 * m + (1 - beta_1) * delta
        v = second(v, delta)
        x = x + lr * m / (v.sqrt() + tau)
    return x


def by_hsu(rounds: int, lr: float, momentum: float) -> Tensor:
    """v <- beta v + change; x <- x + lr v."""
    x = global_state()["weight"].double()
    v = torch.zeros_like(x)
    for number in range(1, rounds + 1):
        v = momentum * v + (mean_of_clients(number)["weight"].double() - x)
        x = x + lr * v
    return x


ADAPTIVE = {
    "FedAdagrad": (FedAdagrad(lr=0.3, tau=0.01), 0.3, 0.0, lambda v, d: v + d**2),
    "FedAdam": (FedAdam(lr=0.3, tau=0.01), 0.3, 0.9, lambda v, d: 0.99 * v + 0.01 * d**2),
    "FedYogi": (FedYogi(lr=0.3, tau=0.01), 0.3, 0.9, lambda v, d: v - 0.01 * d**2 * torch.sign(v - d**2)),
}


def stepped(aggregator: FedOpt, rounds: int) -> Tensor:
    state = global_state()
    for number in range(1, rounds + 1):
        state = aggregator.step(state, Gathered(mean_of_clients(number), PARAMETERS))
    return state["weight"].double()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_are_the_papers(name: str) -> None:
    aggregator, lr, beta_1, second = ADAPTIVE[name]
    torch.testing.assert_close(stepped(aggregator, 6), by_reddi(6, lr, beta_1, 0.01, second), rtol=1e-4, atol=1e-5)


def test_fedavgm_is_the_papers() -> None:
    torch.testing.assert_close(stepped(FedAvgM(0.5, 0.8), 6), by_hsu(6, 0.5, 0.8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [FedAvgM, FedAdagrad, FedAdam, FedYogi])
def test_their_own_defaults_train(make: Callable[[], FedOpt]) -> None:
    done, _ = fit(aggregator=make(), max_rounds=6)
    losses = [record.metrics["fp/val_loss"] for record in done._records]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FedAdam(lr=0.0), "lr 0.0, betas .* lr and tau must be above 0"),
        (lambda: FedYogi(beta_2=1.0), "betas in \\[0, 1\\)"),
        (lambda: FedAvgM(lr=-1.0), "FedAvgM: Invalid learning rate: -1.0"),
        (lambda: FedAdagrad(tau=-1.0), "FedAdagrad: Invalid epsilon value: -1.0"),
    ],
)
def test_values_out_of_range_are_refused_when_they_are_given(make: Callable[[], FedOpt], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()
