"""Schemes, the training lanes of each mode, and the conversion to what is deployed."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.quantize.activation_ranges import attach_ranges
    from fedhq_lightning.quantize.bias_correction import correct_bias
    from fedhq_lightning.quantize.conversion import IntegerInferenceConfig, convert
    from fedhq_lightning.quantize.grid import dequantize_weight, quantize_activation, quantize_weight, round_to_grid
    from fedhq_lightning.quantize.integer_layers import IntegerConv1d, IntegerConv2d, IntegerLayer, IntegerLinear
    from fedhq_lightning.quantize.lane_options import LaneOptions
    from fedhq_lightning.quantize.lanes import PtqTrainingConfig, QatTrainingConfig, prepare, restore
    from fedhq_lightning.quantize.packing import pack, packed_bytes, unpack
    from fedhq_lightning.quantize.range_calibration import calibrate_ranges
    from fedhq_lightning.quantize.range_learning import RangeLearner
    from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme

__all__ = [
    "IntegerConv1d",
    "IntegerConv2d",
    "IntegerInferenceConfig",
    "IntegerLayer",
    "IntegerLinear",
    "LaneOptions",
    "LayerScheme",
    "PtqTrainingConfig",
    "QatTrainingConfig",
    "QuantScheme",
    "RangeLearner",
    "attach_ranges",
    "calibrate_ranges",
    "convert",
    "correct_bias",
    "dequantize_weight",
    "pack",
    "packed_bytes",
    "prepare",
    "quantize_activation",
    "quantize_weight",
    "restore",
    "round_to_grid",
    "unpack",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.quantize.activation_ranges": ["attach_ranges"],
        "fedhq_lightning.quantize.bias_correction": ["correct_bias"],
        "fedhq_lightning.quantize.conversion": ["IntegerInferenceConfig", "convert"],
        "fedhq_lightning.quantize.grid": [
            "dequantize_weight",
            "quantize_activation",
            "quantize_weight",
            "round_to_grid",
        ],
        "fedhq_lightning.quantize.integer_layers": ["IntegerConv1d", "IntegerConv2d", "IntegerLayer", "IntegerLinear"],
        "fedhq_lightning.quantize.lane_options": ["LaneOptions"],
        "fedhq_lightning.quantize.lanes": ["PtqTrainingConfig", "QatTrainingConfig", "prepare", "restore"],
        "fedhq_lightning.quantize.packing": ["pack", "packed_bytes", "unpack"],
        "fedhq_lightning.quantize.range_calibration": ["calibrate_ranges"],
        "fedhq_lightning.quantize.range_learning": ["RangeLearner"],
        "fedhq_lightning.quantize.scheme": ["LayerScheme", "QuantScheme"],
    },
)
