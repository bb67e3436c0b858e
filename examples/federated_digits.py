"""The smallest federation: digits dealt to 6 clients, an MLP trained in rounds and deployed with 4-bit weights.

Run: python examples/federated_digits.py [ROUNDS]
"""

import sys

import torch
from flwr_datasets.partitioner import DirichletPartitioner

from fedhq_lightning import FederatedTrainer, PartitionedDataModule
from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import Digits
from fedhq_lightning.models import MLP

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10

partitioner = DirichletPartitioner(num_partitions=6, partition_by="label", alpha=1.0, min_partition_size=0, seed=0)
data = PartitionedDataModule(Digits(), partitioner)  # any LightningDataModule
modes = FixedAllocator(0.5)  # half of the clients train in qat, the others in ptq
trainer = FederatedTrainer(
    max_rounds=rounds, scheme="w4a8", monitor="val_accuracy", callbacks=[modes], enable_progress_bar=False
)
trainer.fit(MLP(image_size=8, lr=0.1), data)  # any LightningModule

summary = trainer.summary
print(f"{summary['metric_name']} on held-out images, round {summary['best_round']} of {summary['rounds']}")
print(f"  fp32 global model      {summary['metric_fp']:.4f}")
print(f"  deployed in {summary['scheme']}       {summary['metric_quantized']:.4f}")
print(f"  local fits by mode     {summary['mode_counts']}")
print(f"  bytes up, down         {summary['uplink_bytes']:,}, {summary['downlink_bytes']:,}")

model = torch.export.load(trainer.run_dir / "model/model.pt2").module()  # needs torch alone
data.setup("fit")
images, labels = next(iter(data.val_dataloader()))
print(f"model.pt2 on one batch   {(model(images).argmax(1) == labels).float().mean().item():.4f}")
print(f"everything else          {trainer.run_dir}")
