"""What corrects the roofline: a few factors, fitted to measured steps, the same for every device.

The roofline asks for peaks, and no layer reaches them. How far it stays below depends on what runs (a convolution, a
rounding pass, an optimizer) more than on where, so these factors are shipped once. They were fitted on one host by
`benchmarks/step_prediction.py --fit`; how well they do on models that were not in the fit is in docs/RESULTS.md. On
other devices they are an assumption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from fedhq_lightning.devices.device_profile import read_mapping
from fedhq_lightning.errors import ConfigurationError, nearest


@dataclass(frozen=True)
class Calibration:
    """Factors on the roofline's terms; 1 everywhere is the plain roofline.

    Each says how many times as long something takes as peak, bandwidth or operator overhead alone would have it; those
    called `operators` count operators.

    Attributes:
        linear_float: Floating-point products of linear layers, and those outside of any layer.
        convolution_float: Floating-point products of convolutions.
        linear_int8: int8 products of linear layers.
        convolution_int8: int8 products of convolutions.
        linear_backward: bf16 products behind an int8 forward (`qat_backward: bf16`), linear layers.
        convolution_backward: The same, convolutions.
        product_traffic: Operands and results of products.
        other_traffic: What other layers read and write.
        int8_traffic: Quantizing and rescaling around int8 products, where all three of a layer are.
        qat_int8_traffic: The same where the forward alone is one.
        fused_traffic: Fused rounding of activations.
        fake_traffic: torchao's rounding of activations.
        weight_traffic: Rounding a weight to the grid.
        search_traffic: What searching its scale adds.
        update_traffic: The optimizer's.
        float_operators: Of one that the plain module calls.
        ptq_int8_operators: Of a layer that trains in int8, under `ptq` or `qat`, beyond the plain one.
        qat_int8_operators: Of a layer with an int8 forward alone, beyond the plain one.
        fused_operators: Of a layer with fused fake quantization, beyond the plain one.
        fake_operators: Of a layer with torchao's, beyond the plain one.
        update_operators: Of the update of a layer's parameters.
        step_operators: Of a step beside its layers.

    Raises:
        ConfigurationError: A factor that is not a number >= 0.
    """

    linear_float: float = 1.0
    convolution_float: float = 1.0
    linear_int8: float = 1.0
    convolution_int8: float = 1.0
    linear_backward: float = 1.0
    convolution_backward: float = 1.0
    product_traffic: float = 1.0
    other_traffic: float = 1.0
    int8_traffic: float = 1.0
    qat_int8_traffic: float = 1.0
    fused_traffic: float = 1.0
    fake_traffic: float = 1.0
    weight_traffic: float = 1.0
    search_traffic: float = 1.0
    update_traffic: float = 1.0
    float_operators: float = 1.0
    ptq_int8_operators: float = 1.0
    qat_int8_operators: float = 1.0
    fused_operators: float = 1.0
    fake_operators: float = 1.0
    update_operators: float = 1.0
    step_operators: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < 0:
                raise ConfigurationError(f"calibration: {name} is {value!r}; it must be a number >= 0")

    @classmethod
    def of(cls, factors: Mapping[str, Any]) -> Calibration:
        """Make one of all its factors by name.

        Raises:
            ConfigurationError: A factor that is missing, unknown or not a number >= 0.
        """
        names = [each.name for each in fields(cls)]
        for name in factors:
            if name not in names:
                raise ConfigurationError(f"calibration: unknown factor {name!r}{nearest(str(name), names)}")
        missing = [name for name in names if name not in factors]
        if missing:
            raise ConfigurationError(f"calibration: {', '.join(missing)} missing")
        return cls(**factors)


PLAIN = Calibration()
"""The roofline without any correction."""


@cache
def shipped_calibration() -> Calibration:
    """The factors that the virtual clock uses, from `devices/calibration.yaml`.

    Raises:
        ConfigurationError: The file is broken.
    """
    content = read_mapping(files("fedhq_lightning.devices") / "calibration.yaml")
    return Calibration.of(content.get("factors") or {})
