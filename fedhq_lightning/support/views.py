"""The two views of a global model: as float32, and as deployed. They differ in BatchNorm statistics.

Rounding moves the mean and the variance of what reaches a layer, so each view has statistics of its own. A state of a
run holds those of the float32 view under their names in the module, and those of the deployed view beside them, under
`quantized/NAME`; a state without them, as a user's module has it, is both views.
"""

from __future__ import annotations

from fedhq_lightning.types import StateDict

DEPLOYED = "quantized/"
"""Before the names of what the deployed view has of its own."""


def float_view(state: StateDict) -> StateDict:
    """What a float32 module loads."""
    return {name: value for name, value in state.items() if not name.startswith(DEPLOYED)}


def deployed_view(state: StateDict) -> StateDict:
    """What a module loads that is about to be converted to the scheme's grid."""
    return float_view(state) | deployed_statistics(state)


def deployed_statistics(state: StateDict) -> StateDict:
    """What the deployed view has of its own, by the names in the module."""
    return {name.removeprefix(DEPLOYED): value for name, value in state.items() if name.startswith(DEPLOYED)}


def as_deployed(statistics: StateDict) -> StateDict:
    """Statistics of the deployed view, by the names that a run's state has for them."""
    return {DEPLOYED + name: value for name, value in statistics.items()}
