"""The same modules under `lightning.Trainer` with the callbacks, which leave behind what Lightning alone leaves."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from fedhq_lightning.callbacks import FederatedAveraging, QuantizedTraining
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.silent_logger import SilentLogger
from fedhq_lightning.quantize import QuantScheme

from ..beside_lightning import lightning_trainer, without_advice
from . import styles_of_layers, styles_of_training  # noqa: F401  # they enter their styles
from .demos import DemoData, made, modules_of_demos
from .runs import LEFT_OUT, seeded, traces
from .styles import STYLES

pytestmark = LEFT_OUT
SCHEME = QuantScheme("w4a8", edge_bits=None)
DEMOS = [kind for kind in modules_of_demos() if made(kind).automatic_optimization]
COMPILED = ("a submodule compiled with torch.compile", "a submodule compiled in setup")
LAZY = ("lazy layers", "lazy layers, with example_input_array")
# Lightning takes no log of a module in another; torch synchronizes batches on a GPU alone once there are processes.
NOT_LIGHTNINGS = {
    "a LightningModule in another, which logs too",
    "batch statistics synchronized over processes, converted by Lightning's helper",
}


@pytest.fixture(autouse=True)
def no_processes() -> Iterator[None]:
    """Lightning leaves the group of processes that a strategy made."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def fit(module: L.LightningModule, data: Any, callback: L.Callback | None, **settings: Any) -> dict[str, float]:
    """One epoch; what it logged."""
    callbacks = [] if callback is None else [callback]
    trainer = lightning_trainer(max_epochs=1, callbacks=callbacks, logger=SilentLogger(), **settings)
    held_out = data.val_dataloader() if is_overridden("validation_step", module) else None
    with without_advice():
        trainer.fit(module, data.train_dataloader(0), held_out)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def quantized_training(folder: Path, export: bool) -> tuple[L.Callback, dict[str, Any]]:
    return QuantizedTraining("qat", SCHEME, export=export, dirpath=folder), {}


def federated_averaging(folder: Path, export: bool) -> tuple[L.Callback, dict[str, Any]]:
    callback = FederatedAveraging(scheme=SCHEME, export=export, dirpath=folder)
    return callback, {"strategy": "fedhq", "use_distributed_sampler": False, "default_root_dir": folder}


def assert_alike(
    make: Callable[[], L.LightningModule], data: Any, callback: Any, folder: Path, export: bool = False
) -> None:
    """It runs, reports the quantized metric of what validation logs, and leaves no more than Lightning does."""
    alone, module = seeded(make), seeded(make)
    logged_alone = fit(alone, data, None)
    made_callback, settings = callback(folder, export)
    logged = fit(module, data, made_callback, **settings)
    expected, found = traces(alone), traces(module)
    left = {key: (expected.get(key), found.get(key)) for key in expected | found if expected.get(key) != found.get(key)}
    assert not left, left
    assert logged_alone.keys() <= logged.keys()
    quantized = {name for name in logged if name.startswith("quantized/")}
    assert bool(quantized) == any("val" in name for name in logged_alone)
    if export:
        assert made_callback.deployed_path is not None  # type: ignore[attr-defined]  # both have it
        assert made_callback.deployed_path.exists()  # type: ignore[attr-defined]  # likewise


CALLBACKS = pytest.mark.parametrize(
    "callback", [quantized_training, federated_averaging], ids=["QuantizedTraining", "FederatedAveraging"]
)


@CALLBACKS
@pytest.mark.parametrize("name", [name for name in STYLES if name not in NOT_LIGHTNINGS])
def test_styles(name: str, callback: Any, tmp_path: Path) -> None:
    style = STYLES[name]
    refused = ""
    if name in COMPILED:
        refused = r"\.net is the result of torch\.compile.* call self\.net\.compile\(\) instead"
    elif name in LAZY and callback is federated_averaging:
        refused = "has lazy layers.* call the module once on a batch before fit"
    if not refused:
        assert_alike(style.module, style.data(), callback, tmp_path)
        return
    made_callback, settings = callback(tmp_path, False)
    with pytest.raises(ConfigurationError, match=refused):
        fit(seeded(style.module), style.data(), made_callback, **settings)


@CALLBACKS
@pytest.mark.parametrize("kind", DEMOS, ids=lambda kind: kind.__name__)
def test_demos(kind: type[L.LightningModule], callback: Any, tmp_path: Path) -> None:
    data = DemoData(kind, tmp_path / "data")
    assert_alike(lambda: made(kind), data, callback, tmp_path, export=kind.__name__ == "DemoModel")
