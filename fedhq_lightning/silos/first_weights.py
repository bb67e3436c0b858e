"""All silos begin with the same weights: those of rank 0."""

from __future__ import annotations

import hashlib
import json

from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.collectives import Processes


def share_first_weights(module: nn.Module, processes: Processes) -> None:
    """Give every silo the state of rank 0's module, in place and bit by bit.

    Args:
        module: The silo's.
        processes: The silos.

    Raises:
        ConfigurationError: The silos' modules do not have the same tensors.
    """
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    shapes = {name: (str(value.dtype), list(value.shape)) for name, value in state.items()}
    digests = processes.gather(hashlib.blake2b(json.dumps(shapes).encode(), digest_size=16).hexdigest())
    if len(set(digests)) > 1:
        others = ", ".join(str(rank) for rank, digest in enumerate(digests) if digest != digests[0])
        raise ConfigurationError(
            f"the module of silo {others} has other tensors than that of silo 0; build the same module on every "
            "rank, whatever data it sees"
        )
    for value in state.values():
        processes.copy_from_first(value)
