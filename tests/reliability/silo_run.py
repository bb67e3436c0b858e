"""Two silos in `lightning.Trainer`: `python silo_run.py FOLDER`, begun or gone on with, as a user's script does it."""

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FederatedAveraging, FixedAllocator

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.small_federation import SmallModule, examples

EPOCHS = 6


class Normed(SmallModule):
    """With batch statistics, dropout and momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(16))
        self.net.insert(3, nn.Dropout(0.2))


class Data(pl.LightningDataModule):
    """Silos of unequal sizes."""

    def train_dataloader(self) -> Any:
        rank = self.trainer.global_rank
        return DataLoader(examples((24, 56)[rank], 1 + rank), batch_size=8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(examples(40, 100), batch_size=8)


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")  # Lightning's advice
    checkpoints = folder / "checkpoints"
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="fedhq",
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=EPOCHS,
        default_root_dir=folder,
        logger=CSVLogger(folder, "logs", "0"),
        callbacks=[
            FederatedAveraging(scheme="w4a8"),
            FixedAllocator({0: "ptq", 1: "qat"}),
            ModelCheckpoint(checkpoints, filename="{epoch}", save_top_k=-1),
        ],
    )
    newest = max(checkpoints.glob("epoch=*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    module = Normed()
    trainer.fit(module, Data(), ckpt_path=newest)
    found = {
        "state": module.state_dict(),
        "momentum": trainer.optimizers[0].state_dict()["state"],
        "steps": trainer.global_step,
    }
    torch.save(found, folder / f"end-{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
