"""A LightningModule and data of one's own: three shops with unequal data, each trained in a mode of its own.

Nothing in the module knows of clients or of quantization. Run: python examples/own_module.py [ROUNDS]
"""

import sys

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning import FederatedDataModule, FederatedTrainer
from fedhq_lightning.callbacks import FixedAllocator


class Net(L.LightningModule):
    """A small convolutional network, as any Lightning user writes one."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 9, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, images):
        return self.layers(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)


class Shops(FederatedDataModule):
    """Data that have clients already: the south has seen few digits above 4, the west has little of everything."""

    client_ids = ("north", "south", "west")

    def setup(self, stage: str) -> None:
        digits = load_digits()
        images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
        labels = torch.tensor(digits.target)
        low = (labels[:1500] < 5).nonzero().flatten()
        rows = {"north": torch.arange(0, 700), "south": low[low >= 700], "west": torch.arange(1400, 1500)}
        self.shops = {shop: TensorDataset(images[rows[shop]], labels[rows[shop]]) for shop in self.client_ids}
        self.held_out = TensorDataset(images[1500:], labels[1500:])

    def train_dataloader(self, client_id):
        return DataLoader(self.shops[client_id], batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.held_out, batch_size=100)


rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
modes = FixedAllocator({"north": "ptq", "south": "qat", "west": "qat"})
trainer = FederatedTrainer(max_rounds=rounds, scheme="w4a8", callbacks=[modes], enable_progress_bar=False)
net = Net()
trainer.fit(net, Shops())
print(trainer.validate(net, Shops()))  # net holds the float32 weights of the best round
print(trainer.summary["layer_schemes"])
print(trainer.run_dir)
