"""FedAdagrad: steps on the server are divided by the root of all squared changes so far."""

from __future__ import annotations

from functools import partial

from torch.optim import Adagrad

from fedhq_lightning.federated.algorithms.fed_opt import FedOpt


class FedAdagrad(FedOpt):
    """`FedOpt` with Adagrad, whose sum of squares begins with tau squared.

    Args:
        lr: Of the server.
        tau: Degree of adaptivity, added to the root; smaller adapts more.

    Source: Reddi et al. 2021, Algorithm 2 with beta_1 = 0; lr and tau as they took them for CIFAR-10 (Table 8).
    """

    def __init__(self, lr: float = 0.1, tau: float = 1e-3) -> None:
        self.lr = lr
        self.tau = tau
        super().__init__(partial(Adagrad, lr=lr, initial_accumulator_value=tau**2, eps=tau))
