"""The two views of a global model: as float32, and as deployed. They differ in BatchNorm statistics.

Rounding moves the mean and the variance of what reaches a layer, so each view has statistics of its own. A state of a
run holds those of the float32 view under their names in the module, and those of the deployed view beside them, under
`quantized/NAME`; a state without them, as a user's module has it, is both views.

Static activation ranges (`LAYER.fedhq_activation_range`) are used by the deployed view alone, but clients train them
and send them with the weights, so a run's modules hold them in both views. The user's own module has none.
"""

from __future__ import annotations

from fedhq_lightning.types import StateDict

DEPLOYED = "quantized/"
"""Before the names of batch statistics that the deployed view has of its own."""
RANGE = "fedhq_activation_range"
"""Last part of the name of a static activation range."""


def float_view(state: StateDict) -> StateDict:
    """What a run's float32 module loads."""
    return {name: value for name, value in state.items() if not name.startswith(DEPLOYED)}


def users_view(state: StateDict) -> StateDict:
    """What the user's own module loads: the float32 view without activation ranges."""
    return {name: value for name, value in float_view(state).items() if not is_range(name)}


def is_range(name: str) -> bool:
    """Whether a name in a state is that of a static activation range."""
    return name.rpartition(".")[2] == RANGE


def deployed_view(state: StateDict) -> StateDict:
    """What a module loads that is about to be converted to the scheme's grid."""
    return float_view(state) | deployed_statistics(state)


def deployed_statistics(state: StateDict) -> StateDict:
    """What the deployed view has of its own, statistics and activation ranges, by the names in the module."""
    return {
        name.removeprefix(DEPLOYED): value
        for name, value in state.items()
        if name.startswith(DEPLOYED) or is_range(name)
    }


def as_deployed(statistics: StateDict) -> StateDict:
    """Statistics and ranges of the deployed view, by the names that a run's state has for them."""
    return {name if is_range(name) else DEPLOYED + name: value for name, value in statistics.items()}
