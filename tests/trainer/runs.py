"""Runs of small things, and what they left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L

from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import Plan, StateDict

from ..small_federation import SmallData, SmallModule, trainer


def fit(
    module: L.LightningModule | None = None, data: Any = None, ckpt_path: Path | None = None, **settings: Any
) -> tuple[FederatedTrainer, StateDict]:
    """A run of small things; the trainer and the last round's global model."""
    there = trainer(**settings)
    there.fit(module or SmallModule(), data or SmallData(), ckpt_path)
    return there, last_state(there)


def checkpoint(there: FederatedTrainer) -> dict[str, Any]:
    return load_checkpoint(RunDirectory.of_checkpoint(there.run_dir)[1])


def last_state(there: FederatedTrainer) -> StateDict:
    state: StateDict = checkpoint(there)["state"]["global_state"]
    return state


def records(there: FederatedTrainer) -> list[RoundRecord]:
    return RunDirectory(there.run_dir).read_rounds()


class Recorder(RoundCallback):
    """Keeps what it is told, and runs something at the end of a round."""

    def __init__(self, at_round_end: Callable[[FederatedTrainer, RoundRecord], None] | None = None) -> None:
        self.calls: list[str] = []
        self.at_round_end = at_round_end

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self.calls.append("fit start")

    def on_round_start(self, trainer: FederatedTrainer, round_number: int, plan: Plan) -> None:
        self.calls.append(f"round {round_number} start {sorted(plan.modes)}")

    def on_client_end(self, trainer: FederatedTrainer, record: ClientRecord) -> None:
        self.calls.append(f"client {record.client_id}")

    def on_round_end(self, trainer: FederatedTrainer, record: RoundRecord) -> None:
        self.calls.append(f"round {record.round} end")
        if self.at_round_end is not None:
            self.at_round_end(trainer, record)

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        self.calls.append(f"fit end {sorted(trainer.summary)[0]}")

    def on_exception(self, trainer: FederatedTrainer, error: BaseException) -> None:
        self.calls.append(f"exception {type(error).__name__}")
