"""Whether Weights & Biases is online, and whether it may be: asked before a run, so that wandb never asks in it."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from lightning.pytorch.loggers import WandbLogger

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.support.wandb_session import api_host, is_logged_in, wandb_session

_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


_SECONDS_TO_REACH = 3.0


def mode(default: str = "offline") -> str:
    """`online`, `offline` or `disabled`, as WANDB_MODE says, else `default`."""
    return _MODES.get(os.environ.get("WANDB_MODE") or default, default)


def check_own() -> None:
    """Refuse before the run what would fail in it, of `logger: true`.

    Raises:
        ConfigurationError: WANDB_MODE is none of W&B's; or it is "online" and no API key is known.
    """
    given = os.environ.get("WANDB_MODE")
    if given and given not in _MODES:
        raise ConfigurationError(
            f"WANDB_MODE {given!r}: must be online, offline or disabled{nearest(given, list(_MODES))}"
        )
    if mode() == "online":
        _check_key("WANDB_MODE is online", "leave WANDB_MODE out to log offline")


def check_given(logger: WandbLogger) -> None:
    """Refuse before the run what would fail in it, of a logger that the user made.

    Raises:
        ConfigurationError: Its run is finished; or it is to be online and no API key is known.
    """
    if getattr(logger._experiment, "_is_finished", False):
        raise ConfigurationError(
            f"the WandbLogger's run {logger.version} is finished and takes nothing more; make a new WandbLogger for "
            "each run, or finish it after the last"
        )
    set_mode = logger._wandb_init.get("mode")
    own = _MODES.get(set_mode, "online") if set_mode else mode("online")
    if logger._experiment is None and not logger._offline and own == "online":
        _check_key("the WandbLogger is online", "give it offline=True, or set WANDB_MODE=offline, to log offline")


def why_unreachable() -> str | None:
    """Why nothing can be sent to the server of this user's wandb now; None where something answers there.

    wandb itself would try for a minute and a half.
    """
    url = urlsplit(api_host())
    proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)
    asked = urlsplit(proxy) if proxy else url
    place = asked.hostname or "", asked.port or (443 if asked.scheme == "https" else 80)
    try:
        socket.create_connection(place, _SECONDS_TO_REACH).close()
    except OSError as error:
        return f"{place[0]}:{place[1]} was not reached: {error.strerror or error}"
    return None


def _check_key(what: str, instead: str) -> None:
    with wandb_session():
        if not is_logged_in():
            raise ConfigurationError(
                f"{what}, but no API key for {api_host()} is known: run `wandb login`, set WANDB_API_KEY, or {instead}"
            )
