"""Weights & Biases without prompts, and without reports of its errors to its makers."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedhq_lightning.errors import ConfigurationError

_REPORTING = "WANDB_ERROR_REPORTING"


@contextmanager
def wandb_session() -> Iterator[None]:
    """Where wandb is used: it reports none of its errors, unless the user's environment says so; nothing else changes.

    What it has to say to the user it says: a run of ours is made silent by its own settings.
    """
    if _REPORTING in os.environ:
        yield
        return
    os.environ[_REPORTING] = "false"
    _remember("false")
    try:
        yield
    finally:
        os.environ.pop(_REPORTING, None)
        _remember(None)


def _remember(value: str | None) -> None:
    """Put ours into the environment as wandb remembers it: it warns of changes, which are to be the user's alone."""
    setup = sys.modules.get("wandb.sdk.wandb_setup")
    remembered = getattr(getattr(setup, "_singleton", None), "_settings_environ", None)
    if remembered is not None:
        remembered.pop(_REPORTING, None)
        if value is not None:
            remembered[_REPORTING] = value


def api_host() -> str:
    """Address of the server that this user's wandb talks to."""
    from wandb.sdk.wandb_setup import singleton

    return str(singleton().settings.base_url)


def is_logged_in() -> bool:
    """Whether an API key for it is known; never asks for one.

    Raises:
        ConfigurationError: What is known as the key cannot be one.
    """
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        return (
            wbauth.authenticate_session(host=api_host(), source="fedhq", prompt=False, update_session=False) is not None
        )
    except wandb.errors.AuthenticationError as error:
        raise ConfigurationError(
            f"the W&B API key for {api_host()} is not valid ({error}); run `wandb login`, or set WANDB_API_KEY"
        ) from error
