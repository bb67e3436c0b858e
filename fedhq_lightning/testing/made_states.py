"""Global models, and the means that clients would send, without clients."""

import torch

from fedhq_lightning.types import StateDict

PARAMETERS = frozenset({"weight", "bias", "tied", "half"})
"""The trained parameters among the names of `global_state`; the others are buffers."""


def global_state(seed: int = 0) -> StateDict:
    """Parameters in two precisions, two of them tied, a buffer of floats and one of whole numbers.

    Args:
        seed: Decides every value; torch's global random numbers decide nothing and are left alone.
    """
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
    """The float32 mean of what clients sent: every float tensor of `global_state(seed)`."""
    return {name: value.float() for name, value in global_state(seed).items() if value.is_floating_point()}
