"""Runs a module under Lightning's own Trainer, to hold ours against it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L


@contextmanager
def without_advice() -> Iterator[None]:
    """Lightning recommends workers and reminds of defaults; none of that is about us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lightning_trainer(**settings: Any) -> L.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    with without_advice():
        return L.Trainer(**(quiet | settings))


def lightning_fit(module: L.LightningModule, loader: Any, **settings: Any) -> L.Trainer:
    trainer = lightning_trainer(**({"max_epochs": 1} | settings))
    with without_advice():
        trainer.fit(module, loader)
    return trainer


def lightning_validate(module: L.LightningModule, loaders: Any) -> dict[str, float]:
    trainer = lightning_trainer()
    with without_advice():
        trainer.validate(module, loaders, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
