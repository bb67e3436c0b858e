"""What can be told from a module alone: whether a federation can train it, and what it brings that takes no part."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.lightnings import AnyModule, is_overridden

_REMOVED_HOOKS = {
    "training_epoch_end": "on_train_epoch_end",
    "validation_epoch_end": "on_validation_epoch_end",
    "test_epoch_end": "on_test_epoch_end",
}


def check_is_lightning_module(module: Any) -> None:
    """Refuse anything else.

    Raises:
        ConfigurationError: It is a LightningModule neither of `lightning` nor of `pytorch_lightning`.
    """
    if isinstance(module, AnyModule):
        return
    name = type(module).__name__
    if hasattr(module, "_orig_mod") and isinstance(module._orig_mod, AnyModule):
        raise ConfigurationError(
            f"module: got a compiled {type(module._orig_mod).__name__}; give the LightningModule itself, and compile "
            "the layers in it (self.net = torch.compile(self.net)) or let the lanes' kernels be compiled"
        )
    raise ConfigurationError(f"module: got {name}; give a LightningModule")


def check_module(module: L.LightningModule) -> None:
    """Refuse what a local fit cannot run, and say what of the module is left out.

    Raises:
        ConfigurationError: Manual optimization, no `training_step` or `configure_optimizers`, hooks that Lightning 2
            does not call, or steps that take the loader instead of a batch.
    """
    name = type(module).__name__
    for needed in ("training_step", "configure_optimizers"):
        if not is_overridden(needed, module):
            raise ConfigurationError(f"{name} has no {needed}; a client trains with the module's own, so add one")
    for removed, instead in _REMOVED_HOOKS.items():
        if callable(getattr(module, removed, None)):
            raise ConfigurationError(
                f"{name}.{removed}: Lightning 2 does not call it; keep what the steps give in a list of the module's "
                f"and reduce it in {instead}"
            )
    check_automatic_optimization(module)
    for step in ("training_step", "validation_step", "test_step"):
        for parameter, why in (
            ("dataloader_iter", "a local fit hands over one batch after another; take `batch, batch_idx`"),
            ("optimizer_idx", "there is one optimizer; leave the argument out"),
        ):
            if is_param_in_hook_signature(getattr(module, step), parameter, explicit=True):
                raise ConfigurationError(f"{name}.{step} takes {parameter}: {why}")
    if is_overridden("configure_callbacks", module):
        rank_zero_warn(
            f"{name}.configure_callbacks: Lightning's callbacks take no part in a federation; give FederatedTrainer "
            "those of fedhq_lightning.callbacks"
        )


def check_automatic_optimization(module: L.LightningModule) -> None:
    """Refuse manual optimization.

    Raises:
        ConfigurationError: `automatic_optimization` is False.
    """
    if not module.automatic_optimization:
        raise ConfigurationError(
            f"{type(module).__name__}: manual optimization (automatic_optimization = False) is not supported in "
            "federated training; return the loss from training_step and let configure_optimizers name one optimizer"
        )


def check_state(module: L.LightningModule, frozen: frozenset[str]) -> None:
    """Refuse a state that cannot travel, or that leaves out what is trained.

    Args:
        module: With its layers built.
        frozen: Names of the parameters that no local fit trains.

    Raises:
        ConfigurationError: Something in the state is no tensor, or a trained parameter is not in it, or
            `strict_loading` is not off although others are not.
    """
    name, state = type(module).__name__, module.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"{name}: state {key!r} is a {type(value).__name__}, and only tensors travel between server and "
                "clients; make it a buffer, or leave it out of state_dict (get_extra_state)"
            )
    missing = [key for key, _ in module.named_parameters(remove_duplicate=False) if key not in state]
    trained = [key for key in missing if key not in frozen]
    if trained:
        raise ConfigurationError(
            f"{name}.state_dict leaves out {', '.join(trained[:3])}, which are trained, so no client could send them; "
            "give them to state_dict, or freeze them (requires_grad = False)"
        )
    if missing and module.strict_loading:
        raise ConfigurationError(
            f"{name}.state_dict leaves out {', '.join(missing[:3])}; set self.strict_loading = False, as Lightning "
            "wants it for such a state"
        )


def run_eagerly(module: nn.Module) -> None:
    """Make the parts that `torch.compile` wraps run as they are written; their names in the state stay.

    A lane changes the classes of layers, which a compiled program would not see or could not follow.
    """
    compiled = [name for name, part in module.named_modules() if hasattr(part, "_orig_mod")]
    for name in compiled:
        part = module.get_submodule(name)
        part.dynamo_ctx = _as_it_is  # type: ignore[assignment]  # kept in copies
        part._initialize()  # type: ignore[operator]  # what torch's own wrapper calls
    if compiled:
        rank_zero_warn(
            f"{type(module).__name__}: {', '.join(compiled)} is wrapped by torch.compile; clients run it eagerly, "
            "with the compiled kernels that the lanes have"
        )


def keep_batches_apart(module: nn.Module) -> None:
    """Make `nn.SyncBatchNorm` look at the client's own batch alone: other processes have batches of other clients."""
    for part in module.modules():
        if type(part) is nn.SyncBatchNorm:
            part.__class__ = _UnsynchronizedBatchNorm


class _UnsynchronizedBatchNorm(nn.SyncBatchNorm):
    forward = _BatchNorm.forward


def _as_it_is(function: Any) -> Any:
    return function


def copied(module: L.LightningModule) -> L.LightningModule:
    """A deep copy of the user's module.

    Raises:
        ConfigurationError: It holds something that cannot be copied.
    """
    unseen = [name for name, buffer in module.named_buffers() if isinstance(buffer, UninitializedBuffer)]
    if unseen:  # torch copies lazy parameters, but not lazy buffers
        raise ConfigurationError(
            f"{type(module).__name__}: {', '.join(unseen)} belong to lazy layers, which have no shape yet; call the "
            "module once on a batch before fit, or write layers with their sizes"
        )
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever the classes of its attributes raise
        for path, part in module.named_modules():
            for key, value in vars(part).items():
                if key not in ("_modules", "_trainer", "_fabric") and not _can_copy(value):
                    where = f"{path}.{key}" if path else key
                    raise ConfigurationError(
                        f"{type(module).__name__}: self.{where} ({type(value).__name__}) cannot be copied, and every "
                        "lane trains a copy of the module; make it in on_fit_start, or leave it out of the module "
                        f"({str(error).splitlines()[0]})"
                    ) from error
        raise


def _can_copy(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:  # whatever its class raises
        return False
    return True
