"""Weights & Biases without prompts and noise."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.quiet import libraries_quiet

_CHANGED = ("WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_MODE")
"""By us, and the last by Lightning's logger, which would make later runs of the process offline too."""


@contextmanager
def wandb_quietly() -> Iterator[None]:
    """Without the notices of wandb and of Lightning about wandb; errors still show. The environment stays as it was."""
    environment = {name: os.environ.get(name) for name in _CHANGED}
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        with libraries_quiet("wandb", warnings_of=[r"wandb\..*", r"lightning\.pytorch\.loggers\.wandb"]):
            yield
    finally:
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
        return wbauth.authenticate_session(host=api_host(), source="fedhq", prompt=False) is not None
    except wandb.errors.AuthenticationError as error:
        raise ConfigurationError(
            f"the W&B API key for {api_host()} is not valid ({error}); run `wandb login`, or set WANDB_API_KEY"
        ) from error
