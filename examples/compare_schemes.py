"""What a scheme costs: bytes of one client's update, and accuracy of the deployed model, everybody in qat.

Once with clients that send their weights, once with clients that send the change, in as many bytes. One small model,
one seed: bytes are those of real payloads, accuracies tell only what is far apart. Schemes that need more than a name
are written as QuantScheme. Run: python examples/compare_schemes.py [ROUNDS]
"""

import sys
import warnings

import lightning as L
from flwr_datasets.partitioner import DirichletPartitioner

from fedhq_lightning import FederatedTrainer, PartitionedDataModule, QuantScheme
from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import Digits
from fedhq_lightning.models import MLP

SCHEMES: dict[str, str | QuantScheme | None] = {
    "none (fp32)": None,
    "w8a8": "w8a8",
    "w4a8": "w4a8",
    "w3a8": "w3a8",
    "w3a8-g32": "w3a8-g32",
    "w3a4": "w3a4",
    "w2a8": "w2a8",
    "w2a8, edges too": QuantScheme("w2a8", edge_bits=None),
}


def run(scheme: str | QuantScheme | None, uplink: str, rounds: int) -> dict:
    """The summary of one run; runs differ in nothing but scheme and uplink."""
    L.seed_everything(0, verbose=False)  # the same initial weights
    partitioner = DirichletPartitioner(6, partition_by="label", alpha=0.3, min_partition_size=0, seed=0)
    trainer = FederatedTrainer(
        max_rounds=rounds,
        scheme=scheme,
        uplink=uplink,
        monitor="val_accuracy",
        callbacks=None if scheme is None else [FixedAllocator("qat")],
        logger=False,
        enable_progress_bar=False,
    )
    model = MLP(image_size=8, hidden_sizes=(128, 128, 64), lr=0.05)
    trainer.fit(model, PartitionedDataModule(Digits(), partitioner))
    return trainer.summary


rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
warnings.filterwarnings("ignore", "uplink 'weights' rounds")  # that it loses changes at 2 bits is in the table
print("| scheme | bytes of one update | share of fp32 | accuracy, deployed | the same, uplink weights |")
print("|---|---|---|---|---|")
fp32_bytes = 0.0
for name, scheme in SCHEMES.items():
    summaries = [run(scheme, uplink, rounds) for uplink in ("delta", "weights")]
    update_bytes = summaries[0]["uplink_bytes"] / sum(summaries[0]["mode_counts"].values())
    fp32_bytes = fp32_bytes or update_bytes
    metric = "metric_fp" if scheme is None else "metric_quantized"
    delta, weights = (f"{summary[metric]:.3f}" for summary in summaries)
    print(f"| {name} | {update_bytes:,.0f} | {update_bytes / fp32_bytes:.2f} | {delta} | {weights} |")
