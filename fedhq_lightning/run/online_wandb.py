"""A run's numbers through Weights & Biases' public API. The only part that uses the network, and only when named."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeVar

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.logged_rows import LoggedHistory, make_history
from fedhq_lightning.support.wandb_session import api_host, is_logged_in, wandb_session

_REQUEST_SECONDS = 20
_SECONDS_IN_ALL = 180.0
_PART = r"[\w.\- ]+"
_PATH = re.compile(rf"(?:wandb:)?({_PART})/({_PART})/({_PART})")
_ADDRESS = re.compile(rf"https?://[^/]+/({_PART})/({_PART})/runs/({_PART})(?:[/?#].*)?")
_T = TypeVar("_T")


@dataclass(frozen=True)
class RunPath:
    """Where a run is at W&B: `entity/project/run_id`."""

    entity: str
    project: str
    run_id: str

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}/{self.run_id}"


def parse_run_path(text: str) -> RunPath | None:
    """The run that is meant by `entity/project/run_id`, the same after `wandb:`, or the address of its page."""
    match = _ADDRESS.fullmatch(text) or _PATH.fullmatch(text)
    return None if match is None or {".", ".."} & set(match.groups()) else RunPath(*match.groups())


def read_online(path: RunPath, seconds: float = _SECONDS_IN_ALL) -> LoggedHistory:
    """The rows of a run at W&B.

    Args:
        path: The run.
        seconds: Wall seconds after which to give up; a single request has 20.

    Raises:
        ConfigurationError: No API key, no such run, no answer, or no round in it.
    """
    with wandb_session():
        import wandb

        host = api_host()
        source = f"W&B run {path}"
        if not is_logged_in():
            raise ConfigurationError(
                f"{source}: no API key for {host} is known: run `wandb login`, set WANDB_API_KEY, or give the run's "
                "folder or its offline files"
            )

        def read() -> tuple[list[dict[str, Any]], dict[str, Any]]:
            run = wandb.Api(timeout=_REQUEST_SECONDS).run(str(path))
            # Without keys: a scan by keys leaves out rows that lack one, and not every round is evaluated.
            return [dict(row) for row in run.scan_history()], dict(run.config)

        try:
            rows, config = _within(seconds, read)
        except TimeoutError:
            raise ConfigurationError(
                f"{source}: {host} did not answer in time; try again, or give the run's folder or its offline files"
            ) from None
        except Exception as error:
            raise ConfigurationError(_explain(source, host, error)) from error
    return make_history(source, rows, config)


def _explain(source: str, host: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError) or re.search(r"\b(404|not found|could not find)\b", text, re.IGNORECASE):
        return f"{source}: there is no such run at {host}, or your key may not see it; give entity/project/run_id"
    return f"{source}: cannot be read from {host}: {text}; or give the run's folder or its offline files"


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """`call()`, or TimeoutError: wandb itself waits without an end for a page of history."""
    done: list[_T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            done.append(call())
        except Exception as error:
            failed.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError
    return done[0]
