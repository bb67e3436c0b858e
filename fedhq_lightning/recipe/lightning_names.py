"""Names that Lightning's `Trainer` has and `FederatedTrainer` has not, and what there is instead."""

from __future__ import annotations

_LOADERS = "clients' loaders come from the data module: fit(module, PartitionedDataModule(datamodule, partitioner))"
_SHORT = "local_steps bounds a client's batches in one round; what is held out is what val_dataloader gives"
_CHECKPOINTS = "checkpoints/ of trainer.run_dir holds best.ckpt and the last rounds, for Module.load_from_checkpoint"
_ROUND = "trainer.summary tells the rounds done, and a RoundCallback is told of each"
_ITSELF = "there is nothing to set"

ARGUMENTS = {
    "max_epochs": "max_rounds is the length of the run, local_epochs the passes over a client's data in one round",
    "min_epochs": "every client trains for local_epochs in each of max_rounds",
    "max_steps": "max_rounds is the length of the run, local_steps the optimizer steps of a client in one round",
    "min_steps": "every client trains for local_steps in each of max_rounds",
    "max_time": "a RoundCallback that sets trainer.should_stop ends the run; fedhq resume goes on with it",
    "fast_dev_run": "max_rounds=1 and local_steps=1 make a run short; one batch is tried before round 1 in any case",
    "limit_train_batches": _SHORT,
    "limit_val_batches": _SHORT,
    "limit_test_batches": _SHORT,
    "limit_predict_batches": _SHORT,
    "overfit_batches": _SHORT,
    "val_check_interval": "eval_every_n_rounds says after which rounds is evaluated",
    "check_val_every_n_epoch": "eval_every_n_rounds says after which rounds is evaluated",
    "num_sanity_val_steps": f"{_ITSELF}: one batch of training and of validation is tried before round 1",
    "log_every_n_steps": f"{_ITSELF}: what is logged is reduced to one value a round",
    "enable_checkpointing": "checkpoint_every_n_rounds says after which rounds; a run can always be resumed",
    "enable_model_summary": f"{_ITSELF}: report.html has the layers",
    "gradient_clip_algorithm": "gradients are clipped by norm; override configure_gradient_clipping for another way",
    "deterministic": f"{_ITSELF}: the same seed gives the same bits",
    "benchmark": f"{_ITSELF}: what is measured on a host decides nothing",
    "use_distributed_sampler": f"{_ITSELF}: processes share the clients, not their data",
    "sync_batchnorm": f"{_ITSELF}: batch statistics are averaged over clients",
    "reload_dataloaders_every_n_epochs": f"{_ITSELF}: train_dataloader is asked anew in every round",
    "train_dataloaders": _LOADERS,
    "val_dataloaders": _LOADERS,
    "weights_only": f"{_ITSELF}: nothing in a checkpoint is executed",
}
"""Arguments of `Trainer(...)` and `Trainer.fit(...)`."""

ATTRIBUTES = {
    "checkpoint_callback": _CHECKPOINTS,
    "checkpoint_callbacks": _CHECKPOINTS,
    "save_checkpoint": _CHECKPOINTS,
    "current_epoch": _ROUND,
    "global_step": _ROUND,
    "max_epochs": "trainer.settings.max_rounds is the length of the run",
    "logged_metrics": "trainer.callback_metrics has what was logged last",
    "progress_bar_metrics": "trainer.callback_metrics has what was logged last",
    "early_stopping_callback": "trainer.callbacks has the round callbacks",
    "log_dir": "trainer.run_dir is where the run writes",
    "model": "the module that was given to fit holds the deployed round's float32 weights",
    "lightning_module": "the module that was given to fit holds the deployed round's float32 weights",
    "datamodule": "the data module is the one that was given to fit",
    "global_rank": "trainer.fabric.global_rank",
    "world_size": "trainer.fabric.world_size",
    "strategy": "trainer.fabric.strategy",
    "tune": "fedhq tune searches for better values",
}
"""Attributes and methods of a Trainer."""


def instead_of(name: str) -> str | None:
    """What to do without an argument of Lightning's; None for a name of nobody's."""
    return None if name not in ARGUMENTS else f"Lightning's {name} is not taken: {ARGUMENTS[name]}"
