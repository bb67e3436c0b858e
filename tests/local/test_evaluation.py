"""Where a module is evaluated."""

import math
from contextlib import nullcontext

import torch
from lightning.fabric import Fabric

from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import FitOptions

from ..small_federation import SmallData, SmallModule


def test_batches_go_where_the_module_is() -> None:
    """The exported program is evaluated on the CPU wherever the run trains; `meta` stands for another device here."""
    template, processes = SmallModule(), Processes(Fabric(accelerator="cpu", devices=1))
    elsewhere = torch.device("meta")
    evaluator = Evaluator(template, QuantScheme("w4a8"), FitOptions(), processes, elsewhere, nullcontext, seed=0)
    metrics = evaluator.metrics_of(template, [SmallData().val_dataloader()])
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values())
