"""What a run logged, round by round: of the live run, and read back from earlier ones. Imports nothing heavy."""

from fedhq_lightning.history.reader import read_history
from fedhq_lightning.history.rows import ROUND, LoggedHistory, logged_values

__all__ = ["ROUND", "LoggedHistory", "logged_values", "read_history"]
