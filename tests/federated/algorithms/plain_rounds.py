"""Federated rounds as papers write them: plain loops in float64, without anything of this package but its seeds."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedhq_lightning.support.seeds import derive_seed, seed_generators
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import ClientId, StateDict

from ...small_federation import SmallData, SmallModule
from ...trainer.runs import records

Weights = list[Tensor]
"""A model's parameters in float64, in their order."""
Gradients = Callable[[Weights], Weights]
"""Of the loss on one batch, at some weights."""


def initial_weights() -> Weights:
    return [parameter.detach().double() for parameter in SmallModule().parameters()]


def batches(
    data: SmallData, seed: int, round_number: int, client_id: ClientId, epochs: int, purpose: str = "fit"
) -> Iterator[Gradients]:
    """The steps of a client's fit in a round, with the batches that it has in a run."""
    seed_generators(derive_seed(seed, purpose, round_number, client_id))
    loader = data.train_dataloader(client_id)
    for _ in range(epochs):
        for batch in loader:
            yield lambda weights, batch=batch: _gradients(weights, batch)


def _gradients(weights: Weights, batch: Any) -> Weights:
    module = SmallModule().double()
    names = [name for name, _ in module.named_parameters()]
    held = [value.clone().requires_grad_() for value in weights]
    logits = torch.func.functional_call(module, dict(zip(names, held, strict=True)), (batch[0].double(),))
    return list(torch.autograd.grad(nn.functional.cross_entropy(logits, batch[1]), held))


def plus(left: Weights, right: Weights, factor: float = 1.0) -> Weights:
    """left + factor * right."""
    return [one + factor * other for one, other in zip(left, right, strict=True)]


def scaled(weights: Weights, factor: float) -> Weights:
    return [factor * each for each in weights]


def mean(parts: list[Weights], shares: list[float]) -> Weights:
    """Weighted by shares that sum to 1."""
    total = scaled(parts[0], shares[0])
    for part, share in zip(parts[1:], shares[1:], strict=True):
        total = plus(total, part, share)
    return total


def check_is(module: SmallModule, state: StateDict, wanted: Weights) -> None:
    """The parameters of a run's global model are these, but for float32's rounding."""
    for (name, _), value in zip(module.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(state[name].double(), value, rtol=1e-4, atol=1e-6)


def cohorts_of(done: FederatedTrainer) -> list[list[int]]:
    """Who took part in each round."""
    return [[int(client.client_id) for client in record.clients] for record in records(done)[1:]]
