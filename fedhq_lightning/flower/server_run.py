"""A run whose clients are on nodes: the trainer's, with the server's half of the clients put in."""

from __future__ import annotations

from fedhq_lightning.flower.checks import check_can_travel
from fedhq_lightning.flower.messages import Nodes
from fedhq_lightning.flower.remote_clients import clients_on
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.trainer import FederatedTrainer


def run_on(nodes: Nodes, name: str, text: str, runs: str | None = None, resume: str | None = None) -> FederatedTrainer:
    """Train what a recipe says.

    Args:
        nodes: Where its clients are.
        name: The recipe's.
        text: Of the recipe.
        runs: Folder of run directories, in place of the recipe's `default_root_dir`; None for that.
        resume: Run directory to go on from, "last" for the newest of this recipe, or None for a new run.

    Returns:
        The trainer, after `fit`.

    Raises:
        ConfigurationError: What `FederatedTrainer.fit` refuses, or what does not work with clients on nodes.
    """
    resolved = resolve(name, text, [] if runs is None else [f"--trainer.default_root_dir={runs}"])
    with resolved.keys_named():
        trainer, module, datamodule = resolved.instantiate()
        check_can_travel(trainer.settings, trainer.described)
        trainer.client_place = clients_on(nodes)
        trainer.fit(module, datamodule, resume)
    return trainer
