"""Which kernel computes each layer of a lane, on a modelled device, for a batch of any size.

The kernels are those that `quantize.prepare` gives a layer, chosen by the same rule (`quantize.kernel_choice`), but for
the integer products that the modelled device has, and not for those of this host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from torch import nn

from fedhq_lightning.devices.layer_costs import LayerCost
from fedhq_lightning.quantize.kernel_choice import least_convolution_rows, least_linear_rows
from fedhq_lightning.quantize.lane_options import KERNELS, LaneOptions
from fedhq_lightning.types import Mode

if TYPE_CHECKING:
    from fedhq_lightning.devices.device_profile import DeviceProfile
    from fedhq_lightning.quantize.scheme import LayerScheme

Kernel: TypeAlias = Literal["fp", "int8", "fused", "fake"]
"""`fp`: as in the plain layer. `int8`: all three products, or under `qat` the forward alone. `fused`: fake quantization
by our fused kernels. `fake`: torchao's conventional fake quantization of activations."""


class KernelChoice(NamedTuple):
    """A layer's kernel by the size of its batch.

    Attributes:
        small: Below `least_rows` rows of a call.
        large: From there on.
        least_rows: See `LayerCost.rows`; 0 where the size decides nothing.
    """

    small: Kernel
    large: Kernel
    least_rows: float = 0.0

    def at(self, rows: float) -> Kernel:
        """The kernel of a call with so many rows."""
        return self.large if rows >= self.least_rows else self.small


@dataclass(frozen=True)
class LaneKernels:
    """What the recipe says of each layer that its scheme quantizes.

    Attributes:
        chosen: Mode (`ptq`, `qat`) to layer name to the recipe's word: `auto`, `int8`, `fp` or `fake`. Layers that are
            not named have `auto`.
        without_integers: Layers whose forward on the grid is not one int8 product (weight-only schemes, groups of
            weights, very wide layers).
        searched: Layers whose weight scales are searched, which costs passes over the weight.
        backward_of_values: Layers whose gradients under `qat` are products of values where their forward is one of
            integers; the others' gradients are products of integers, too.
    """

    chosen: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    without_integers: frozenset[str] = frozenset()
    searched: frozenset[str] = frozenset()
    backward_of_values: frozenset[str] = frozenset()

    @classmethod
    def of(cls, module: nn.Module, grids: Mapping[str, LayerScheme], lanes: LaneOptions | None = None) -> LaneKernels:
        """Read them from a run's own parts.

        Args:
            module: The user's, in floating point.
            grids: Grid of every quantized layer, by the layer's name or by its weight's (`name.weight`).
            lanes: The recipe's; None is `LaneOptions()`.

        Raises:
            ConfigurationError: A pattern in `lanes` that matches no layer.
        """
        from fedhq_lightning.quantize.grid import is_searched
        from fedhq_lightning.quantize.qat_layers import has_integer_forward

        lanes = LaneOptions() if lanes is None else lanes
        layers = {name.removesuffix(".weight"): grid for name, grid in grids.items()}
        whole = {name for name, grid in layers.items() if has_integer_forward(module.get_submodule(name), grid)}
        return cls(
            chosen={mode: lanes.kernels_of(mode, list(layers)) if layers else {} for mode in ("ptq", "qat")},
            without_integers=frozenset(set(layers) - whole),
            searched=frozenset(name for name, grid in layers.items() if is_searched(grid.weight_bits)),
            backward_of_values=frozenset(
                name for name, grid in layers.items() if lanes.qat_backward != "int8" or grid.static_range
            ),
        )

    def choose(self, cost: LayerCost, mode: Mode, profile: DeviceProfile) -> KernelChoice:
        """A layer's kernel on a device.

        Args:
            cost: The layer.
            mode: How the client trains.
            profile: Its device.

        Returns:
            The kernel, by the size of the batch. What the recipe demands and the device lacks gives way: int8 training
            to floating point, an int8 forward to fused fake quantization, fused kernels to torchao's.
        """
        if mode == "fp" or not cost.quantizable:
            return KernelChoice("fp", "fp")
        demanded = self.chosen.get(mode, {}).get(cost.name, "auto")
        if mode == "ptq":
            integers = profile.ptq_kernel == "int8" and not cost.grouped
            return _by_size(cost, demanded, integers, "fp")
        fallback: Kernel = "fake" if demanded == "fake" or profile.qat_kernel == "fake" else "fused"
        integers = profile.qat_kernel == "int8" and cost.quantizes_activations and not cost.grouped
        return _by_size(cost, demanded, integers and cost.name not in self.without_integers, fallback)


def _by_size(cost: LayerCost, demanded: str, integers: bool, fallback: Kernel) -> KernelChoice:
    assert demanded in {*KERNELS["ptq"], *KERNELS["qat"]}
    if not integers or demanded in ("fp", "fake"):
        return KernelChoice(fallback, fallback)
    if demanded == "int8":
        return KernelChoice("int8", "int8")
    if not cost.weight_shape:
        return KernelChoice(fallback, fallback)
    least = least_linear_rows if cost.kind == "linear" else least_convolution_rows
    least_rows = least(cost.weight_shape)
    return KernelChoice(fallback, fallback) if least_rows == inf else KernelChoice(fallback, "int8", least_rows)
