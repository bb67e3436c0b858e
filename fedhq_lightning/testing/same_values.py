"""Whether two values are alike to the last bit, and what comes back from a file."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def same_values(left: Any, right: Any) -> bool:
    """Whether two nests of mappings, sequences, tensors, arrays and plain values are alike to the last bit.

    Unlike `==` it tells -0.0 from 0.0 and 1 from 1.0, and knows NaN. Tuples and lists of the same items are alike, and
    so are mappings of the same items in another order.
    """
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and _bytes(left).equal(_bytes(right))
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_values(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same_values, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return left.hex() == right.hex()
    return type(left) is type(right) and bool(left == right)


def through_json(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a state is after JSON."""
    back: dict[str, Any] = json.loads(json.dumps(state))
    return back


def through_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a state is after a checkpoint, which is read without unpickling objects."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    back: dict[str, Any] = torch.load(file, weights_only=True)
    return back


def not_plain(value: Any, holds_tensors: bool = False, place: str = "state_dict()") -> str | None:
    """Where a value holds anything but plain values, or None.

    Args:
        value: Mappings with text or whole numbers as keys, sequences, text, numbers, truth values, None.
        holds_tensors: Whether tensors are allowed too.
        place: What the value is called.
    """
    if isinstance(value, dict):
        keys = [key for key in value if type(key) not in ((str, int) if holds_tensors else (str,))]
        found = [f"{place} has the key {keys[0]!r}"] if keys else []
        found += [each for key, item in value.items() if (each := not_plain(item, holds_tensors, f"{place}[{key!r}]"))]
        return next(iter(found), None)
    if isinstance(value, list | tuple):
        items = (not_plain(item, holds_tensors, f"{place}[{index}]") for index, item in enumerate(value))
        return next(filter(None, items), None)
    is_plain = value is None or type(value) in (bool, int, float, str) or (holds_tensors and isinstance(value, Tensor))
    return None if is_plain else f"{place} is a {type(value).__name__}"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
