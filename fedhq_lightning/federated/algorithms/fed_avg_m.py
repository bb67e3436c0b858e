"""FedAvgM: momentum on the server."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD

from fedhq_lightning.federated.algorithms.fed_opt import FedOpt


class FedAvgM(FedOpt):
    """`FedOpt` with SGD and momentum.

    Args:
        lr: Of the server.
        momentum: In [0, 1).

    Source: Hsu et al. 2019, section 4.3; its beta of 0.9.
    """

    def __init__(self, lr: float = 1.0, momentum: float = 0.9) -> None:
        self.lr = lr
        self.momentum = momentum
        super().__init__(partial(SGD, lr=lr, momentum=momentum))
