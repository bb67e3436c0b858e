"""Lightning's own Trainer, one callback more: QAT for 4-bit weights, checkpoints by the quantized accuracy, model.pt2.

No federation. Run: python examples/quantized_training.py [EPOCHS]
"""

import logging
import sys
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fedhq_lightning.callbacks import QuantizedTraining
from fedhq_lightning.data import Digits
from fedhq_lightning.models import MLP

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no banners
warnings.filterwarnings("ignore", message=".*(does not have many workers|isinstance.treespec, LeafSpec)")  # Lightning's
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 8

quantized = QuantizedTraining("qat", "w4a8")
best = ModelCheckpoint(monitor="quantized/val_accuracy", mode="max")
trainer = L.Trainer(
    max_epochs=epochs,
    callbacks=[quantized, best],
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
L.seed_everything(0, verbose=False)
data = Digits()
trainer.fit(MLP(image_size=8, hidden_sizes=(128, 128), lr=0.05), data)

for name in ("val_accuracy", "quantized/val_accuracy"):
    print(f"{name:24} {trainer.callback_metrics[name].item():.4f}")
print(f"{'best checkpoint':24} {best.best_model_score:.4f} {best.best_model_path}")

images, labels = next(iter(data.val_dataloader()))
model = torch.export.load(quantized.deployed_path).module()  # needs torch alone
print(f"{'model.pt2 on one batch':24} {(model(images).argmax(1) == labels).float().mean().item():.4f}")
