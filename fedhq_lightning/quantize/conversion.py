"""Conversion of a trained module to the model that is deployed."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.activation_ranges import has_its_range
from fedhq_lightning.quantize.integer_layers import INTEGER_TYPES
from fedhq_lightning.quantize.lanes import named, restore, turn_off_fast_paths
from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme
from fedhq_lightning.quantize.torchao_quietly import AOBaseConfig, quantize_, register_quantize_module_handler
from fedhq_lightning.types import AnyModule


@dataclass
class IntegerInferenceConfig(AOBaseConfig):  # type: ignore[misc]  # torchao ships no types
    """torchao config: replace layers by integer layers on the deployment grid.

    Args:
        scheme: The grid. A group size must divide the layer's flattened input.
    """

    scheme: LayerScheme


@register_quantize_module_handler(IntegerInferenceConfig)  # type: ignore[untyped-decorator]  # torchao ships no types
def _to_integer(layer: nn.Module, config: IntegerInferenceConfig) -> nn.Module:
    return become_integer(layer, config.scheme)


def become_integer(layer: nn.Module, scheme: LayerScheme) -> nn.Module:
    """Turn a plain layer into its integer layer.

    Args:
        layer: `nn.Linear`, `nn.Conv1d` or `nn.Conv2d`; the same object changes class and content, so that hooks and
            every reference to it, a second name among them, stay valid.
        scheme: The grid.

    Returns:
        The layer given.
    """
    integer = INTEGER_TYPES[type(layer)](layer, scheme)  # type: ignore[arg-type]  # the table pairs the types
    layer.__class__ = type(integer)
    # in_features and the like stay readable, and hooks in place; parameters give way to buffers.
    vars(layer).update({name: value for name, value in vars(integer).items() if "_hook" not in name})
    return layer.eval()


def convert(module: AnyModule, scheme: QuantScheme, allow_uncalibrated: bool = False) -> AnyModule:
    """The deployed model: one conversion to the scheme's grid, the same for every mode.

    Args:
        module: Plain or prepared by a lane; a LightningModule's trainer is not copied. It stays as it is.
        scheme: The run's scheme.
        allow_uncalibrated: Whether layers whose static activation range is not calibrated get dynamic ones, instead of
            an error.

    Returns:
        A copy in evaluation mode, on the same device, in which every layer of the scheme is an integer layer. It does
        not train. Results for a sample do not depend on its batch as far as the integer layers go.

    Raises:
        ConfigurationError: Static activation ranges that are not calibrated, or see `QuantScheme.for_layers`.
    """
    converted = restore(copy_without_trainer(module)).eval()
    grids = scheme.for_layers(converted)
    missing = [name for name, grid in grids.items() if not has_its_range(converted.get_submodule(name), grid)]
    if missing and not allow_uncalibrated:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ConfigurationError(
            f"{type(module).__name__}: scheme '{scheme}' has static activation ranges, and {len(missing)} of "
            f"{len(grids)} layers have none yet ({shown}); calibrate the module first with calibrate_ranges, or take "
            "dynamic ranges: leave the s out"
        )
    turn_off_fast_paths(converted)
    for grid in dict.fromkeys(grids.values()):
        same = {name: other for name, other in grids.items() if other == grid}
        quantize_(converted, IntegerInferenceConfig(grid), filter_fn=named(same))
    return converted


def copy_without_trainer(module: AnyModule) -> AnyModule:
    """A deep copy of a module; a LightningModule's comes without its trainer."""
    # A LightningModule refers to its trainer, and through it to data and optimizer states.
    left_out: dict[int, Any] = {}
    for part in module.modules():
        for name in ("_trainer", "_fabric"):
            attachment = part.__dict__.get(name)
            if attachment is not None:
                left_out[id(attachment)] = None
    return copy.deepcopy(module, left_out)
