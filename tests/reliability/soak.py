"""A long run in which three of ten clients fail in every round, with trackers on: `python -m tests.reliability.soak N`.

Prints, as JSON, the process's memory in bytes and its open files after every round, and what is left in the end.
"""

import gc
import json
import os
import sys
import warnings
from pathlib import Path

import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.federated.callback import RoundCallback, RoundControl
from fedhq_lightning.run.records import RoundRecord

from ..small_federation import trainer
from .bad_clients import LEFT_OUT, Arm, Bad, BadData, BadModule


class _Watch(RoundCallback):
    """Other kinds of failures in every round, and what the process holds after it."""

    def __init__(self) -> None:
        self.memory: list[int] = []
        self.files: list[int] = []

    def on_round_end(self, trainer: RoundControl, record: RoundRecord) -> None:
        first = 3 * record.round
        kinds = [LEFT_OUT[(first + step) % len(LEFT_OUT)] for step in range(3)]
        Bad.kinds = dict(zip((1, 4, 8), kinds, strict=True))
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.files.append(len(list(Path("/proc/self/fd").iterdir())))


def main(num_rounds: int) -> None:
    """Run it in the working directory."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    watch = _Watch()
    there = trainer(
        max_rounds=num_rounds,
        scheme="w4a8",
        callbacks=[Arm(), watch, FixedAllocator(0.5)],
        sit_out_rounds=0,
        eval_every_n_rounds=5,
        logger=[WandbLogger(offline=True, save_dir="."), CSVLogger(".")],
    )
    there.fit(BadModule(), BadData(range(10)))
    summary = {name: there.summary[name] for name in ("rounds", "quarantined", "idle", "mode_counts")}
    wandb.teardown()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    left = [str(path) for path in there.run_dir.rglob(".*") if path.is_file()]
    print(json.dumps({"memory": watch.memory, "files": watch.files, "children": children, "left": left, **summary}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
