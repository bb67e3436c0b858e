"""Weights & Biases without prompts and noise."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fedhq_lightning.errors import ConfigurationError


@contextmanager
def wandb_quietly() -> Iterator[None]:
    """Without the notices of wandb and of Lightning about wandb; errors still show."""
    before = logging.getLogger("wandb").level
    logging.getLogger("wandb").setLevel(logging.ERROR)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"wandb\..*|lightning\.pytorch\.loggers\.wandb")
            yield
    finally:
        logging.getLogger("wandb").setLevel(before)


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
