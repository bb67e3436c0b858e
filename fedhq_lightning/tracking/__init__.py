"""Experiment trackers: Weights & Biases, offline unless asked otherwise, and any other of Lightning's loggers."""

from fedhq_lightning.run.logged_rows import logged_values
from fedhq_lightning.tracking.loggers import TrackedLogger, check_logger, finish, log_round, make_loggers
from fedhq_lightning.tracking.run_labels import labelled

__all__ = ["TrackedLogger", "check_logger", "finish", "labelled", "log_round", "logged_values", "make_loggers"]
