"""Two silos in Lightning's own Trainer: a process each, with data of its own, averaged after every epoch.

The script starts itself a second time, as with DDP. Run: python examples/silos.py [EPOCHS]
"""

import logging
import sys
import warnings

import lightning as L
from torch.utils.data import DataLoader, Subset

from fedhq_lightning.callbacks import FederatedAveraging, HybridAllocator
from fedhq_lightning.data import Digits
from fedhq_lightning.models import MLP


class SiloDigits(L.LightningDataModule):
    """Each silo reads what is its own, by rank: the first a tenth of the images, the second the others."""

    def setup(self, stage: str) -> None:
        self.digits = Digits()
        self.digits.setup(stage)

    def train_dataloader(self):
        examples = self.digits.train_dataloader().dataset
        own = [row for row in range(len(examples)) if (row % 10 == 0) == (self.trainer.global_rank == 0)]
        return DataLoader(Subset(examples, own), batch_size=32, shuffle=True)

    def val_dataloader(self):
        return self.digits.val_dataloader()


class ShowModes(L.Callback):
    """Prints each epoch's modes and metrics, on the first silo."""

    def on_validation_end(self, trainer, pl_module):
        metrics = trainer.callback_metrics
        if trainer.is_global_zero and "fedhq/round" in metrics:
            modes = {name: int(value) for name, value in metrics.items() if name.endswith("/mode")}
            print(f"round {int(metrics['fedhq/round'])}: {metrics['quantized/val_accuracy'].item():.4f} {modes}")


for name in ("lightning.fabric", "lightning.pytorch"):
    logging.getLogger(name).setLevel(logging.WARNING)  # no banners
warnings.filterwarnings("ignore", message=".*(does not have many workers|isinstance.treespec, LeafSpec)")  # Lightning's
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 5

L.seed_everything(0, verbose=False)
silos = FederatedAveraging(every_n_epochs=1, scheme="w4a8", fleet="mixed")
allocator = HybridAllocator()
trainer = L.Trainer(
    devices=2,
    strategy="fedhq",
    use_distributed_sampler=False,
    callbacks=[silos, allocator, ShowModes()],
    max_epochs=epochs,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
)
trainer.fit(MLP(image_size=8, lr=0.05), SiloDigits())
if trainer.is_global_zero:
    print(allocator.explanation)
    print("modes are 0 fp, 1 ptq, 2 qat; deployed model:", silos.deployed_path)
