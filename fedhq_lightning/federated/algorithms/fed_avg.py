"""FedAvg."""

from typing_extensions import override

from fedhq_lightning.federated.algorithms.aggregator import Aggregator, Gathered
from fedhq_lightning.types import StateDict


class FedAvg(Aggregator):
    """The mean of the clients' models, weighted by examples.

    Source: McMahan et al. 2017, Algorithm 1.
    """

    @override
    def step(self, current: StateDict, gathered: Gathered) -> StateDict:
        mean = gathered.mean
        return {name: mean[name].to(value.dtype) if name in mean else value for name, value in current.items()}
