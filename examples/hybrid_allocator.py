"""HybridAllocator at work: why the boundary lies where it does, each round's plan, and the map of the clients.

Run: python examples/hybrid_allocator.py [ROUNDS]
"""

import sys

from flwr_datasets.partitioner import DirichletPartitioner

from fedhq_lightning import FederatedTrainer, PartitionedDataModule
from fedhq_lightning.callbacks import HybridAllocator, RoundCallback
from fedhq_lightning.data import Digits
from fedhq_lightning.models import MLP


class ShowPlans(RoundCallback):
    """Prints who trains how, before each round, and what came of it."""

    def on_fit_start(self, trainer):
        print(trainer.allocator.explanation)

    def on_round_start(self, trainer, round_number, plan):
        clients = ", ".join(f"{each} {mode} {plan.work.get(each, 1):.0%}" for each, mode in sorted(plan.modes.items()))
        print(f"round {round_number}: {clients} of the steps")
        print(f"  slack {plan.logged['slack']:.3f}, share {plan.logged['share']:.3f}: {plan.reason}")

    def on_round_end(self, trainer, record):
        if record.round > 0:
            print(f"  quantized {record.metric_quantized:.4f} after {record.total_virtual_seconds:.2f} virtual seconds")


rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10

partitioner = DirichletPartitioner(num_partitions=12, partition_by="label", alpha=0.3, min_partition_size=0, seed=0)
data = PartitionedDataModule(Digits(batch_size=16), partitioner)
trainer = FederatedTrainer(
    max_rounds=rounds,
    clients_per_round=8,
    scheme="w3a8",
    fleet="mixed",  # laptops, phones and Raspberry Pis; virtual times only
    monitor="val_accuracy",
    callbacks=[HybridAllocator(window=1), ShowPlans()],
    enable_progress_bar=False,
)
trainer.fit(MLP(image_size=8, lr=0.1), data)

counts = trainer.summary["mode_counts"]
print(f"{counts['ptq']} local fits in ptq, {counts['qat']} in qat")
print(f"the map of the clients: {trainer.run_dir / 'allocation.svg'}")
