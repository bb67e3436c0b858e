"""FedAdam: steps on the server are divided by the root of a running mean of squared changes."""

from __future__ import annotations

from functools import partial

from fedhq_lightning.federated.algorithms.fed_opt import FedOpt
from fedhq_lightning.federated.algorithms.server_moments import ServerMoments


class FedAdam(FedOpt):
    """`FedOpt` with Adam as the paper has it: without bias correction, and with a mean of squares that begins at tau^2.

    Args:
        lr: Of the server.
        beta_1: Of the running mean of changes.
        beta_2: Of that of their squares.
        tau: Degree of adaptivity, added to the root; smaller adapts more.

    Source: Reddi et al. 2021, Algorithm 2; the values are those of its section 5, lr as for CIFAR-10 (Table 8).
    """

    def __init__(self, lr: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3) -> None:
        self.lr = lr
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.tau = tau
        super().__init__(partial(ServerMoments, rule="adam", lr=lr, betas=(beta_1, beta_2), tau=tau))
