"""What was measured of a recipe's lanes on one host, and which kernels that speaks for."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedhq_lightning.devices.device_profile import DeviceProfile
from fedhq_lightning.profiling.timing import Timing
from fedhq_lightning.types import ClientId

NOTABLE = 1.10
"""How many times as fast another kernel is at least, before the rule's choice is questioned."""
LayerKernels = dict[str, dict[str, str]]
"""Mode to layer name to kernel."""
LANE_MODES = ("ptq", "qat")
"""The modes whose kernels can be chosen."""


@dataclass(frozen=True)
class LayerProfile:
    """One layer, forward and backward, in one training step.

    Attributes:
        name: Module path.
        shapes: Of its input, one a call.
        rule: Mode to the kernel of the static rule: for `ptq` `int8` or `fp`, for `qat` `int8` or `auto` (fused fake
            quantization); also `auto` where calls of one layer differ in it.
        timings: (mode, kernel) to its time in one step, all calls together. Only kernels that differ here.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    rule: Mapping[str, str]
    timings: Mapping[tuple[str, str], Timing]

    def fastest(self, mode: str) -> str:
        """The kernel with the shortest time; of equals the rule's."""
        own = {kernel: timing.seconds for (of, kernel), timing in self.timings.items() if of == mode}
        return min(own, key=lambda kernel: (own[kernel], kernel != self.rule[mode]))

    def gain(self, mode: str) -> float:
        """How many times as fast the fastest kernel is as the rule's."""
        return self.timings[mode, self.fastest(mode)].speed_over(self.timings[mode, self.rule[mode]])


@dataclass(frozen=True)
class PredictedStep:
    """A lane's whole step by the model behind the virtual clock, for this host's own figures.

    Attributes:
        shipped_seconds: With the shipped calibration.
        fitted_seconds: With one fitted to what was measured here of single layers and of the step in `fp`.
    """

    shipped_seconds: float
    fitted_seconds: float


def disagreements(layers: Sequence[LayerProfile]) -> LayerKernels:
    """The kernels that were measured to be more than 10 % faster than the rule's; modes without any are left out."""
    found: LayerKernels = {}
    for mode in LANE_MODES:
        better = {layer.name: layer.fastest(mode) for layer in layers if layer.gain(mode) > NOTABLE}
        if better:
            found[mode] = better
    return found


@dataclass(frozen=True)
class HostProfile:
    """What was measured on this host. All seconds are wall.

    Attributes:
        device: What it ran on: `cpu` or a GPU's name.
        threads: Torch threads.
        scheme: The recipe's.
        client_id: Whose batch it was.
        batch_size: Examples in it.
        layers: In module order.
        not_called: Quantized layers that the step did not call.
        steps: Lane to the time of one whole training step: `fp`, `ptq`, `qat`, `qat fake`, and where they differ from
            those `ptq recipe`, `qat recipe` (as the recipe's lanes say) and `ptq measured`, `qat measured` (with
            `disagreements`).
        warm_up_seconds: All first calls together, with compilation.
        decided: Mode to the kernel that the recipe itself demands for all its layers.
        predicted: Lane to its predicted step; those of `steps` that the model knows.
        host: The host as a device, by measurements of its own; None where it was not measured.
    """

    device: str
    threads: int
    scheme: str
    client_id: ClientId
    batch_size: int
    layers: tuple[LayerProfile, ...]
    not_called: tuple[str, ...]
    steps: Mapping[str, Timing]
    warm_up_seconds: float
    decided: Mapping[str, str]
    predicted: Mapping[str, PredictedStep] = field(default_factory=dict)
    host: DeviceProfile | None = None

    @property
    def layer_kernels(self) -> LayerKernels:
        """What is worth freezing: disagreements of the modes whose whole step they make faster."""
        found = disagreements(self.layers)
        return {mode: kernels for mode, kernels in found.items() if self._is_faster(mode)}

    def _is_faster(self, mode: str) -> bool:
        measured = self.steps.get(f"{mode} measured")
        return mode not in self.decided and measured is not None and measured.speed_over(self.steps[mode]) > 1


def as_patterns(kernels: Mapping[str, str]) -> dict[str, str]:
    """Layer names to kernels, as `LaneOptions.layer_kernels` takes them: `*` and the like stand for themselves."""
    return {glob.escape(name): kernel for name, kernel in kernels.items()}
