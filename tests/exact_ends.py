"""Ends of a run at an exact place, brought about from within it: a test that watches from outside comes too late."""

import os
import signal
from typing import Literal

from typing_extensions import override

from fedhq_lightning.federated.callback import RoundCallback, RoundControl
from fedhq_lightning.run.records import RoundRecord


class Ends(RoundCallback):
    """At the end of round 2, on the first process.

    Args:
        how: Ctrl-C of a terminal, which reaches the whole process group, as do SIGTERM and SIGHUP to "all"; a signal to
            this process alone; or the run's folder is moved away.
    """

    def __init__(
        self, how: Literal["ctrl-c", "sigint", "SIGTERM", "SIGHUP", "SIGTERM to all", "SIGHUP to all", "folder gone"]
    ) -> None:
        self.how = how

    @override
    def on_round_end(self, trainer: RoundControl, record: RoundRecord) -> None:
        if record.round != 2 or not trainer.is_global_zero:
            return
        if self.how == "ctrl-c":
            os.killpg(0, signal.SIGINT)
        elif self.how == "sigint":
            signal.raise_signal(signal.SIGINT)
        elif self.how.endswith(" to all"):
            os.killpg(0, signal.Signals[self.how.removesuffix(" to all")])
        elif self.how.startswith("SIG"):
            signal.raise_signal(signal.Signals[self.how])
        else:
            trainer.run_dir.rename("gone")
