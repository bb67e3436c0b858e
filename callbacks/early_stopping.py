"""Stop a federated run whose monitored value no longer improves."""

import logging
import math
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.callback import RoundCallback, RoundControl
from fedhq_lightning.run.records import RoundRecord

_logger = logging.getLogger(__name__)


class EarlyStopping(RoundCallback):
    """Stops when the trainer's `monitor` has not improved for some evaluations, or is not a finite number.

    What is watched is the value of the deployed (quantized) model, or that of the fp model where there is no deployed
    one. Rounds without evaluation do not count, nor does round 0, the evaluation before any training: its model is
    never deployed.

    Args:
        patience: Evaluations in a row without improvement that end the run, >= 1.
        min_delta: Smallest change that counts as an improvement, in units of the monitored value, >= 0.

    Raises:
        ConfigurationError: `patience` or `min_delta` outside its range.

    Attributes:
        reason: Why the run was stopped, empty as long as it was not.
    """

    def __init__(self, patience: int = 5, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ConfigurationError(f"EarlyStopping: patience {patience} must be 1 or more evaluations")
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise ConfigurationError(f"EarlyStopping: min_delta {min_delta} must be a finite number, 0 or more")
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.evaluations_without_improvement = 0
        self.reason = ""
        self._resumes = False

    @property
    def state_key(self) -> str:
        """Two with different arguments keep their states apart."""
        return f"{type(self).__qualname__}(patience={self.patience}, min_delta={self.min_delta})"

    def state_dict(self) -> dict[str, Any]:
        """Best value, evaluations since, and the reason."""
        return {
            "best": self.best,
            "evaluations_without_improvement": self.evaluations_without_improvement,
            "reason": self.reason,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.best = None if state["best"] is None else float(state["best"])
        self.evaluations_without_improvement = int(state["evaluations_without_improvement"])
        self.reason = str(state["reason"])
        self._resumes = True

    def on_fit_start(self, trainer: RoundControl) -> None:
        """Forget an earlier run, unless this one goes on with it."""
        if not self._resumes:
            self.best, self.evaluations_without_improvement, self.reason = None, 0, ""
        self._resumes = False

    def on_round_end(self, trainer: RoundControl, record: RoundRecord) -> None:
        """Judge the round's value, if it has one and was trained for."""
        if record.round == 0 or record.monitored is None:
            return
        stop, reason = self._judge(
            record.monitored, trainer.monitored.name or "the monitored value", trainer.monitored.mode
        )
        if stop:
            self.reason = f"stopped after round {record.round}: {reason}"
            trainer.should_stop = True
            if trainer.is_global_zero:
                _logger.warning("EarlyStopping: %s", self.reason)

    def _judge(self, value: float, name: str, mode: str | None) -> tuple[bool, str]:
        """Whether to stop and why; touches nothing but the best value and the count."""
        if not math.isfinite(value):
            return True, f"{name} is {value}, not a finite number; best value before: {self.best}"
        gain = math.inf if self.best is None else value - self.best if mode == "max" else self.best - value
        if gain > self.min_delta:
            self.best = value
            self.evaluations_without_improvement = 0
            return False, ""
        self.evaluations_without_improvement += 1
        if self.evaluations_without_improvement < self.patience:
            return False, ""
        return True, (
            f"{name} has not improved on {self.best:g} by more than {self.min_delta:g} "
            f"for {self.evaluations_without_improvement} evaluations"
        )
