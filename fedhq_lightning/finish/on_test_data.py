"""What the deployed model does on test data, which chose nothing: neither its round nor any setting."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.local.evaluation import Evaluator, as_loaders
from fedhq_lightning.support.lightnings import is_overridden
from fedhq_lightning.support.text import first_line
from fedhq_lightning.types import StateDict


def metrics_on_test_data(
    evaluator: Evaluator, state: StateDict, template: L.LightningModule, datamodule: FederatedDataModule
) -> dict[str, float] | None:
    """`fp/NAME` and `quantized/NAME` of what `test_step` logs; None without a test loader or step.

    What fails here is told as a warning: the run is done, and its model is written.

    Args:
        evaluator: Converts and evaluates the module.
        state: The deployed round's weights.
        template: The user's module, set up.
        datamodule: Whose test data are set up for it; torn down with all others, when the fit ends.
    """
    if not (is_overridden("test_step", template) and is_overridden("test_dataloader", unwrapped(datamodule))):
        return None
    try:
        datamodule.setup("test")
        loaders = as_loaders(datamodule.test_dataloader())
        found = evaluator.metrics_of(evaluator.model(state), loaders, "test", evaluator.autocast)
        metrics = {f"fp/{name}": value for name, value in found.items()}
        if evaluator.scheme is not None:
            found = evaluator.metrics_of(evaluator.deployed(state), loaders, "test")
            metrics |= {f"quantized/{name}": value for name, value in found.items()}
    except Exception as error:  # of the user's code
        rank_zero_warn(f"summary: nothing is told of the test data: {type(error).__name__}: {first_line(error)}")
        return None
    return {name: value for name, value in metrics.items() if math.isfinite(value)} if loaders else None
