"""Ends of a run at an exact place, brought about from within it: a test that watches from outside comes too late."""

import os
import signal
import time

from typing_extensions import override

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.callback import RoundCallback, RoundControl
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.support.first_process import process_rank


class Ends(RoundCallback):
    """At the end of round 2, on one process, the first time that the run comes to it.

    Args:
        how: "ctrl-c" of a terminal, which reaches the whole process group; "SIGTERM" or another signal to this process
            alone, "SIGTERM to all"; "folder gone", "raises", "refuses"; or "slow", of which nothing ends.
        rank: Of the process.
        seconds: How long a slow one takes.
    """

    def __init__(self, how: str, rank: int = 0, seconds: float = 0.0) -> None:
        self.how = how
        self.rank = rank
        self.seconds = seconds

    @override
    def on_round_end(self, trainer: RoundControl, record: RoundRecord) -> None:
        if record.round != 2 or process_rank() != str(self.rank):
            return
        happened = trainer.run_dir / "happened"
        if happened.exists():
            return
        happened.touch()
        if self.how == "ctrl-c":
            os.killpg(0, signal.SIGINT)
        elif self.how == "sigint":
            signal.raise_signal(signal.SIGINT)
        elif self.how.endswith(" to all"):
            os.killpg(0, signal.Signals[self.how.removesuffix(" to all")])
        elif self.how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.how])
        elif self.how == "folder gone":
            trainer.run_dir.rename("gone")
        elif self.how == "raises":
            raise ZeroDivisionError("one process's own")
        elif self.how == "refuses":
            raise ConfigurationError("the disk of one process")
        else:
            time.sleep(self.seconds)
