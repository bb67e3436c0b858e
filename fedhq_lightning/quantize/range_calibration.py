"""Calibration: static activation ranges from what enters the layers of a model on its grid."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedhq_lightning.quantize.activation_ranges import attach_range, best_range
from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme
from fedhq_lightning.support.views import RANGE


def calibrate_ranges(module: nn.Module, scheme: QuantScheme, batch_forward: Callable[[nn.Module], object]) -> list[str]:
    """Set every static range to the best one for what enters its layer in a forward pass, see `best_range`.

    One pass does it for all layers, in the order in which they run: each layer has its new range when it answers. In
    a module that is prepared for `qat`, inputs are therefore those of the deployed model.

    Args:
        module: Plain or prepared by a lane; its ranges are changed in place. Attached where there are none.
        scheme: The run's scheme.
        batch_forward: Runs the module that it is given on calibration examples, such as `lambda module: module(images)`
            with images (batch, ...). It decides on training or evaluation mode. What it returns is not used.

    Returns:
        Names of the layers whose range was set. Left as they are: layers that the pass does not reach, and those that
        only zeros enter, or values that are not finite. A layer that runs several times gets a range that holds those
        of each time.

    Raises:
        ConfigurationError: See `QuantScheme.for_layers`.
    """
    grids = {name: grid for name, grid in scheme.for_layers(module).items() if grid.static_range}
    found: dict[str, Tensor] = {}
    handles = []
    try:
        for name, grid in grids.items():
            layer = module.get_submodule(name)
            attach_range(layer)
            # After hooks of the user's, which may change what enters.
            hook = partial(_take, found, name, grid)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        with torch.no_grad():
            batch_forward(module)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in grids if name in found]


def _take(
    found: dict[str, Tensor],
    name: str,
    grid: LayerScheme,
    layer: nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> None:
    x: Tensor = arguments[0] if arguments else keywords["input"]
    assert grid.activation_bits is not None
    if x.numel() == 0 or not bool(x.isfinite().all()) or not bool(x.any()):
        return
    best = best_range(x, grid.activation_bits)
    if name in found:
        best = torch.stack([torch.minimum(best[0], found[name][0]), torch.maximum(best[1], found[name][1])])
    found[name] = best
    layer.get_buffer(RANGE).copy_(best)
