"""Federated algorithms, one file each: what clients add to their training, and the server's step."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.federated.algorithms.aggregator import Aggregator
    from fedhq_lightning.federated.algorithms.fed_adagrad import FedAdagrad
    from fedhq_lightning.federated.algorithms.fed_adam import FedAdam
    from fedhq_lightning.federated.algorithms.fed_async import FedAsync
    from fedhq_lightning.federated.algorithms.fed_avg import FedAvg
    from fedhq_lightning.federated.algorithms.fed_avg_m import FedAvgM
    from fedhq_lightning.federated.algorithms.fed_buff import FedBuff
    from fedhq_lightning.federated.algorithms.fed_dyn import FedDyn
    from fedhq_lightning.federated.algorithms.fed_nova import FedNova
    from fedhq_lightning.federated.algorithms.fed_opt import FedOpt
    from fedhq_lightning.federated.algorithms.fed_prox import FedProx
    from fedhq_lightning.federated.algorithms.fed_yogi import FedYogi
    from fedhq_lightning.federated.algorithms.scaffold import Scaffold

__all__ = [
    "Aggregator",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedDyn",
    "FedNova",
    "FedOpt",
    "FedProx",
    "FedYogi",
    "Scaffold",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.federated.algorithms.aggregator": ["Aggregator"],
        "fedhq_lightning.federated.algorithms.fed_adagrad": ["FedAdagrad"],
        "fedhq_lightning.federated.algorithms.fed_adam": ["FedAdam"],
        "fedhq_lightning.federated.algorithms.fed_async": ["FedAsync"],
        "fedhq_lightning.federated.algorithms.fed_avg": ["FedAvg"],
        "fedhq_lightning.federated.algorithms.fed_avg_m": ["FedAvgM"],
        "fedhq_lightning.federated.algorithms.fed_buff": ["FedBuff"],
        "fedhq_lightning.federated.algorithms.fed_dyn": ["FedDyn"],
        "fedhq_lightning.federated.algorithms.fed_nova": ["FedNova"],
        "fedhq_lightning.federated.algorithms.fed_opt": ["FedOpt"],
        "fedhq_lightning.federated.algorithms.fed_prox": ["FedProx"],
        "fedhq_lightning.federated.algorithms.fed_yogi": ["FedYogi"],
        "fedhq_lightning.federated.algorithms.scaffold": ["Scaffold"],
    },
)
