"""Static activation ranges: one range for all that enters a layer, kept with the layer as its weights are.

A layer whose scheme has static ranges (`w4a4s`) holds `fedhq_activation_range`, (2,) fp32: the smallest and the largest
value that its grid reaches, zero among them. It is a buffer and no Parameter: `module.parameters()`, and with it the
user's optimizer, weight decay and gradient clipping, aggregators' server steps and the directions of updates, stay what
they are without a scheme, and what the clients send is averaged as it is. A range in which nothing lies, such as the
zeros that it starts with, is not calibrated yet; a layer takes dynamic ranges until it is.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.grid import SMALLEST_SCALE, integer_range
from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme
from fedhq_lightning.support.views import RANGE

_MOST_VALUES = 2**13
"""Of an input, by which shares of its range are compared: enough to tell twenty shares apart, and soon done."""
_SHARES = tuple(share / 20 for share in range(20, 0, -1))


class StaticGrid(NamedTuple):
    """A range as the grid of its integers: a value is about (integer - zero point) times scale.

    Attributes:
        scale: fp32, () of one range.
        zero_point: fp32, as the scale; one of the grid's integers.
    """

    scale: Tensor
    zero_point: Tensor

    @classmethod
    def of(cls, activation_range: Tensor, bits: int) -> "StaticGrid":
        """The grid of `bits` bits over a range (..., 2), widened to zero where it does not reach there."""
        lowest, highest = integer_range(bits)
        smallest, largest = activation_range.detach().float().unbind(-1)
        smallest, largest = smallest.clamp(max=0), largest.clamp(min=0)
        scale = ((largest - smallest) / float(highest - lowest)).clamp(min=SMALLEST_SCALE)
        return cls(scale, (lowest - (smallest / scale).round()).clamp(lowest, highest))

    def for_dims(self, count: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point with so many dimensions of size 1, as dynamic ones have them."""
        return self.scale.view([1] * count), self.zero_point.view([1] * count)


def static_integers(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Integers on a static grid, still as fp32, for kernels to fuse.

    What lies beyond the range becomes its end. Not a number becomes some integer where the result is cast to one.

    Args:
        x: fp32, any shape.
        scale: fp32, to be broadcast.
        zero_point: As the scale.
        bits: 2..8.
    """
    return ((x * (1.0 / scale)).round() + zero_point).clamp(*integer_range(bits))


def attach_ranges(module: nn.Module, scheme: QuantScheme) -> list[str]:
    """Give every layer with a static range its `fedhq_activation_range`, not calibrated; one that has it keeps it.

    Args:
        module: Changed in place; plain or prepared by a lane.
        scheme: The run's scheme.

    Returns:
        Names of the ranges in the module's state.

    Raises:
        ConfigurationError: A module that has something else of this name, or see `QuantScheme.for_layers`.
    """
    if not scheme.has_static_ranges:
        return []
    grids = {name: grid for name, grid in scheme.for_layers(module).items() if grid.static_range}
    own = {f"{name}.{RANGE}" if name else RANGE for name in grids}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name.rpartition(".")[2] == RANGE and name not in own:
            raise ConfigurationError(
                f"{type(module).__name__}.{name}: scheme '{scheme}' keeps static ranges under this name; give the "
                "module's own tensor another one"
            )
    for name in grids:
        attach_range(module.get_submodule(name))
    return sorted(own)


def attach_range(layer: nn.Module) -> None:
    """Give a layer an `fedhq_activation_range` that is not calibrated, where it has none."""
    if getattr(layer, RANGE, None) is None:
        layer.register_buffer(RANGE, torch.zeros(2, device=layer.get_parameter("weight").device))


def is_calibrated(activation_range: Tensor) -> bool:
    """Whether something lies in a range (2,)."""
    return bool(activation_range[1] > activation_range[0])


def calibrated_range(layer: nn.Module, scheme: LayerScheme) -> Tensor | None:
    """A layer's range; None where its activations have dynamic ones: by its scheme, or until it is calibrated."""
    if not scheme.static_range:
        return None
    held: Tensor | None = getattr(layer, RANGE, None)
    # One that is being learned is calibrated; to look again would wait for the device in every forward pass.
    return held if held is not None and (held.requires_grad or is_calibrated(held)) else None


def has_its_range(layer: nn.Module, scheme: LayerScheme) -> bool:
    """Whether a layer has the calibrated range that its scheme asks for, or needs none."""
    return not scheme.static_range or calibrated_range(layer, scheme) is not None


def best_range(x: Tensor, bits: int) -> Tensor:
    """The range at which rounding to its grid makes the smallest squared error.

    Searched are the shares 1, 0.95, ... 0.05 of the range of all values. Errors are compared on at most 8,192 values,
    drawn always alike.

    Args:
        x: Floating point, any shape, not empty, all finite.
        bits: 2..8.

    Returns:
        fp32 (2,), on the device of `x`, zero included.

    Source: Banner et al. 2019, with the error measured instead of modelled; as LSQ+ (Bhalgat et al. 2020) starts.
    """
    values = x.detach().float().reshape(-1)
    widest = torch.stack([values.amin().clamp(max=0), values.amax().clamp(min=0)])
    if len(values) > _MOST_VALUES:
        places = torch.randint(len(values), (_MOST_VALUES,), generator=torch.Generator().manual_seed(0))
        values = values[places.to(values.device)]
    ranges = torch.tensor(_SHARES, device=values.device).unsqueeze(1) * widest  # (shares, 2)
    scale, zero_point = (part.unsqueeze(1) for part in StaticGrid.of(ranges, bits))  # (shares, 1)
    rounded = (static_integers(values, scale, zero_point, bits) - zero_point) * scale
    return ranges[(rounded - values).square().sum(1).argmin()]
