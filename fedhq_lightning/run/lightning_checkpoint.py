"""What Lightning looks for in a checkpoint: with it, `Module.load_from_checkpoint` makes the module of a round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.round_checkpoint import is_model
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.support.views import as_deployed, deployed_statistics, users_view
from fedhq_lightning.types import StateDict

_PLAIN = (str, int, float, bool, type(None), torch.Tensor)
_STATISTICS = "fedhq_deployed_statistics"
_NOT_STORED = "not stored in the checkpoint: "


def for_lightning(module: L.LightningModule, weights: StateDict) -> dict[str, Any]:
    """Entries under which Lightning finds a module's weights and hyperparameters.

    A checkpoint holds tensors and plain values only. Where a hyperparameter is something else, `load_from_checkpoint`
    asks for it, instead of making the module with that argument's default.

    Args:
        module: Whose hyperparameters were kept by `save_hyperparameters`, or not.
        weights: The state of the round, in both views.
    """
    part: dict[str, Any] = {"state_dict": users_view(weights), "pytorch-lightning_version": L.__version__}
    if statistics := deployed_statistics(weights):
        part[_STATISTICS] = statistics
    held = dict(module.hparams)
    if held:
        stored = {name: value if _is_plain(value) else _NOT_STORED + repr(value) for name, value in held.items()}
        part[L.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY] = stored
        part[L.LightningModule.CHECKPOINT_HYPER_PARAMS_NAME] = getattr(module, "_hparams_name", None)
        if not all(map(_is_plain, held.values())):
            part[L.LightningModule.CHECKPOINT_HYPER_PARAMS_TYPE] = all_given
    return part


def all_given(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a checkpoint and those given to `load_from_checkpoint`; Lightning calls it with both, put together.

    Raises:
        ConfigurationError: One that the checkpoint could not hold was not given.
    """
    missing = [
        name for name, value in hyperparameters.items() if isinstance(value, str) and value.startswith(_NOT_STORED)
    ]
    if missing:
        raise ConfigurationError(
            f"load_from_checkpoint: {', '.join(missing)}: checkpoints hold plain values only, and this is none "
            f"({hyperparameters[missing[0]].removeprefix(_NOT_STORED)}); give it: "
            f"load_from_checkpoint(PATH, {missing[0]}=...)"
        )
    return dict(hyperparameters)


def weights_of(ckpt_path: str | Path, run_dir: Path) -> StateDict:
    """The float32 weights that a checkpoint holds, with what their deployed view has of its own.

    Args:
        ckpt_path: A checkpoint of ours or of Lightning's; a run directory, for its best round; "best" or "last" for a
            round of `run_dir`.
        run_dir: Of the trainer.

    Raises:
        ConfigurationError: There is none.
    """
    path = expand_path(ckpt_path, "ckpt_path")
    if ckpt_path in ("best", "last") or path.is_dir():
        directory = RunDirectory(run_dir if ckpt_path in ("best", "last") else path)
        rounds = directory.saved_checkpoints()
        if not rounds:
            raise ConfigurationError(
                f"ckpt_path {str(ckpt_path)!r}: {directory.path} holds no checkpoint; call fit before"
            )
        path = directory.best if ckpt_path != "last" and directory.best.is_file() else rounds[-1]
    held = load_checkpoint(path)
    if "state_dict" in held:
        weights, statistics = held["state_dict"], held.get(_STATISTICS, {})
        if is_model(weights) and is_model(statistics):
            return dict(weights) | as_deployed(statistics)
    state: Any = held.get("state")  # of version 0.2, without Lightning's entries
    if isinstance(state, dict) and "global_state" in state:
        averaged = state.get("averaged_state")
        state = state["global_state"] if averaged is None else averaged
    if not is_model(state):
        raise ConfigurationError(f"{path}: holds no weights of a module; give a checkpoint or a run directory")
    return dict(state)


def _is_plain(value: Any) -> bool:
    """Whether torch reads it back as it is without executing anything."""
    if type(value) is dict:
        return all(_is_plain(each) for pair in value.items() for each in pair)
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


# Named in a checkpoint only where something is missing; torch refuses names that it was not told of.
torch.serialization.add_safe_globals([all_given])
