"""What a checkpoint of silos holds beside the global model: each one's optimizers, schedulers, loops, callbacks."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError

KEY = "fedhq_silos"
"""In a checkpoint of Lightning's: one uint8 tensor a silo, which only that silo reads."""

_SHARED = frozenset({"state_dict", "epoch", "global_step", "pytorch-lightning_version", KEY})
_EXTRAS = frozenset({"model", "local"})
_SHARED_PREFIXES = ("hyper_parameters", "hparams", "datamodule_h")


def own_part(checkpoint: Mapping[str, Any], agreed: Sequence[str]) -> dict[str, Any]:
    """What of a checkpoint is one silo's own.

    Args:
        checkpoint: As this silo's Trainer made it.
        agreed: `state_key` of callbacks whose state is the same on every silo.
    """
    part = {
        key: value for key, value in checkpoint.items() if key not in _SHARED and not key.startswith(_SHARED_PREFIXES)
    }
    callbacks = part.get("callbacks", {})
    return part | {"callbacks": {key: state for key, state in callbacks.items() if key not in agreed}}


def packed(part: Mapping[str, Any]) -> bytes:
    """A silo's part as bytes."""
    buffer = io.BytesIO()
    torch.save(dict(part), buffer)
    return buffer.getvalue()


def add_parts(checkpoint: dict[str, Any], parts: Sequence[bytes]) -> None:
    """Put every silo's part into the checkpoint that rank 0 writes."""
    checkpoint[KEY] = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts]


def take_part(
    checkpoint: dict[str, Any], rank: int, count: int, weights_only: bool | None = None
) -> dict[str, Any] | None:
    """Replace rank 0's part by a silo's own; what is the same on every silo stays.

    Args:
        checkpoint: As loaded.
        rank: The silo.
        count: Silos of this run.
        weights_only: As `fit` was told; False takes whatever objects callbacks keep, which runs what is in the file.

    Returns:
        The part; None where the checkpoint is not one of silos.

    Raises:
        ConfigurationError: It is of another number of silos, or this silo's part is no such thing.
    """
    parts: Any = checkpoint.get(KEY)
    if parts is None:
        return None
    if not isinstance(parts, list) or not all(isinstance(each, Tensor) and each.dtype == torch.uint8 for each in parts):
        raise ConfigurationError(f"the checkpoint holds no parts of silos under {KEY!r}; take one as a silo wrote it")
    if len(parts) != count:
        raise ConfigurationError(
            f"the checkpoint is of {len(parts)} silos, this run has {count}; resume with devices={len(parts)}, or "
            "start a new fit without ckpt_path from the weights that load_from_checkpoint gives"
        )
    part = _read_part(parts[rank], rank, weights_only)
    callbacks = checkpoint.get("callbacks", {}) | part.pop("callbacks", {})
    extras = part.pop(KEY, {})
    checkpoint.update(part, callbacks=callbacks)
    return dict(extras)


def _read_part(part: Tensor, rank: int, weights_only: bool | None) -> dict[str, Any]:
    try:
        read = torch.load(io.BytesIO(part.numpy().tobytes()), "cpu", weights_only=weights_only)
    except Exception as error:
        raise unreadable(f"the part of silo {rank} in the checkpoint", error) from error
    held: tuple[Any, Any] = (read.get("callbacks", {}), read.get(KEY, {})) if isinstance(read, dict) else (None, None)
    if not all(isinstance(each, dict) for each in held) or (held[1] and not held[1].keys() >= _EXTRAS):
        raise ConfigurationError(f"the part of silo {rank} in the checkpoint is not what a silo writes")
    return dict(read)


def unreadable(what: str, error: Exception) -> ConfigurationError:
    """What to say of a checkpoint, or a part of one, that torch does not load.

    Args:
        what: It.
        error: Why.
    """
    if not isinstance(error, pickle.UnpicklingError):
        return ConfigurationError(f"{what} is damaged ({type(error).__name__}); take an older one")
    return ConfigurationError(
        f"{what} holds more than tensors and plain values, or is damaged; if you trust it, "
        "fit(..., weights_only=False) runs what is in it"
    )
