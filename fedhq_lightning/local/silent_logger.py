"""What a module writes to while it trains on a client: a logger that takes everything and keeps nothing."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger
from typing_extensions import override


class SilentLogger(Logger):
    """Stands in for the run's logger, which is the server's: `self.logger.experiment.add_image(...)` goes nowhere.

    What a client is to report goes through `self.log`.
    """

    save_dir = log_dir = root_dir = None

    def __init__(self) -> None:
        super().__init__()
        self._experiment = _Nothing()

    @property
    @override
    def name(self) -> str:
        """Empty, as there is no run."""
        return ""

    @property
    @override
    def version(self) -> str:
        """Empty, as there is no run."""
        return ""

    @property
    def experiment(self) -> Any:
        """An object whose every attribute, item and call gives itself."""
        return self._experiment

    @override
    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Drop the metrics: a client's fit has no run to log to."""

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Drop the hyperparameters, as `log_metrics` does."""

    def __getattr__(self, name: str) -> Any:
        """`log_image`, `watch` and what else loggers have."""
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _Nothing:
    """Takes every call, attribute and item, and is itself the answer."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> _Nothing:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setattr__(self, name: str, value: Any) -> None:
        pass

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *error: object) -> None:
        pass
