"""Schemes, the training lanes of each mode, and the deployed model; names load on first use."""

from importlib import import_module
from typing import Any

_MODULES = {
    "LaneOptions": "lane_options",
    "LayerScheme": "scheme",
    "QuantScheme": "scheme",
    "dequantize_weight": "grid",
    "quantize_activation": "grid",
    "quantize_weight": "grid",
    "round_to_grid": "grid",
    "pack": "packing",
    "packed_bytes": "packing",
    "unpack": "packing",
    "IntegerInferenceConfig": "conversion",
    "PtqTrainingConfig": "lanes",
    "QatTrainingConfig": "lanes",
    "ExportError": "export",
    "IntegerConv1d": "integer_layers",
    "IntegerConv2d": "integer_layers",
    "IntegerLayer": "integer_layers",
    "IntegerLinear": "integer_layers",
    "convert": "conversion",
    "correct_bias": "bias_correction",
    "export_program": "export",
    "load_packed": "export",
    "prepare": "lanes",
    "restore": "lanes",
    "packed_size": "export",
    "save_packed": "export",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
