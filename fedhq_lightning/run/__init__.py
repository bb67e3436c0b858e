"""A run as data: its records, folder, state and summary, and what it logged, read back from disk or W&B."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.run.logged_history import read_history
    from fedhq_lightning.run.logged_rows import ROUND, LoggedHistory, logged_values
    from fedhq_lightning.run.run import Run

__all__ = ["ROUND", "LoggedHistory", "Run", "logged_values", "read_history"]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.run.logged_history": ["read_history"],
        "fedhq_lightning.run.logged_rows": ["LoggedHistory", "ROUND", "logged_values"],
        "fedhq_lightning.run.run": ["Run"],
    },
)
