"""Where a module is evaluated."""

import math
from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader

from fedhq_lightning.local.evaluation import Evaluator, as_loaders
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import FitOptions

from ..small_federation import SmallData, SmallModule, examples


def test_batches_go_where_the_module_is() -> None:
    """The exported program is evaluated on the CPU wherever the run trains; `meta` stands for another device here."""
    template, processes = SmallModule(), Processes(None)
    elsewhere = torch.device("meta")
    evaluator = Evaluator(template, QuantScheme("w4a8"), FitOptions(), processes, elsewhere, nullcontext, seed=0)
    metrics = evaluator.metrics_of(template, [SmallData().val_dataloader()])
    assert metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_as_loaders() -> None:
    first, second = DataLoader(examples(4, 1)), DataLoader(examples(4, 1))
    assert as_loaders(None) == []
    assert as_loaders(first) == [first]
    assert as_loaders((first, second)) == [first, second]
    assert as_loaders({"a": first, "b": second}) == [first, second]
