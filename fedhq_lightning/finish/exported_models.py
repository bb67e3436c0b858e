"""Deployed models of a run that is there, written anew: one client's, or everybody's in other files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.deploy.from_state import deploy
from fedhq_lightning.deploy.model_folder import WEIGHTS
from fedhq_lightning.deploy.pixels import Pixels
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.federated import setup
from fedhq_lightning.federated.after_fit import AfterFit
from fedhq_lightning.federated.parts import evaluator_of, models_of, tuned_models_of
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.federated.setup import Job
from fedhq_lightning.local.evaluation import Evaluator, as_loaders
from fedhq_lightning.run.directory import INPUTS, RunDirectory
from fedhq_lightning.run.round_checkpoint import check_model, read_round
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.arithmetic import reproducible
from fedhq_lightning.support.atomic_files import told_to_user, write_atomically
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import ClientId, StateDict

_MOST_NAMED = 10


class ExportsModels(AfterFit):
    """What a trainer writes of a run that is over. `FederatedTrainer` inherits it."""

    def export_client(
        self,
        client_id: ClientId,
        folder: str | Path | None = None,
        module: L.LightningModule | None = None,
        datamodule: FederatedDataModule | None = None,
    ) -> Path:
        """Write the deployed model of one client, with what is its own, of the run in `run_dir`.

        Args:
            client_id: The client, or its id as text.
            folder: Default: `clients/ID/` of the run directory.
            module: Of the run; default, as for the data: that of the last `fit`.
            datamodule: The clients' data.

        Returns:
            The folder, with all that a run's `model/` holds.

        Raises:
            ConfigurationError: No such client, or one that has no model of its own.
        """
        return self._exported("export_client", client_id, folder, module, datamodule)

    def export_model(
        self,
        folder: str | Path | None = None,
        module: L.LightningModule | None = None,
        datamodule: FederatedDataModule | None = None,
    ) -> Path:
        """Write the deployed model of the run in `run_dir` once more, in the files that `export` names.

        Args:
            folder: Default: `exported/` of the run directory, so that `model/` stays.
            module: Of the run; default, as for the data: that of the last `fit`.
            datamodule: The clients' data.

        Returns:
            The folder.

        Raises:
            ConfigurationError: No checkpoint, or a run in which every client has a model of its own alone.
        """
        return self._exported("export_model", None, folder, module, datamodule)

    def _exported(
        self,
        what: str,
        client_id: ClientId | None,
        folder: str | Path | None,
        module: L.LightningModule | None,
        datamodule: FederatedDataModule | None,
    ) -> Path:
        settings, fabric = self.settings, self.fabric
        module = self._fitted if module is None else module
        if module is None:
            raise ConfigurationError(f"{what}: no module; give one, or call fit before")
        data = setup.check_types(module, self._fitted_on if datamodule is None else datamodule)
        with reproducible(settings.threads, fabric.device):
            job = setup.set_up(settings, fabric, module, data, resumes=True)
            evaluator = evaluator_of(settings, fabric, job.template, Processes(None), data)
            writer = _Writer(settings, job, evaluator, RunDirectory(self.run_dir))
            place = None if folder is None else Path(folder)
            return writer.of_all(place) if client_id is None else writer.of_client(client_id, place)


class _Writer:
    """Writes what a run's `model/` would hold.

    Args:
        settings: Of the run.
        job: Checked inputs, of the run's module and data.
        evaluator: Converts the module.
        directory: Of the run, from whose newest checkpoint the deployed round is taken.

    Raises:
        ConfigurationError: No checkpoint, or one of another module.
    """

    def __init__(self, settings: RunSettings, job: Job, evaluator: Evaluator, directory: RunDirectory) -> None:
        self._settings = settings
        self._job = job
        self._evaluator = evaluator
        self._directory = directory
        if not (saved := directory.saved_checkpoints()):
            raise ConfigurationError(f"{directory.path}: holds no checkpoint, so there is no model in it; call fit")
        checkpoint = read_round(saved[-1])
        check_model(saved[-1], checkpoint, job.initial_state())
        self._state = RunState.from_checkpoint(checkpoint["state"], [])

    def of_all(self, folder: Path | None) -> Path:
        """The global model."""
        if self._job.own_layers.names:
            raise ConfigurationError(
                f"{self._directory.path}: with personal_layers the server has no whole model; name a client"
            )
        held_out = "the held-out data (`val_dataloader`)"
        folder = self._directory.path / "exported" if folder is None else folder
        return self._write(folder, self._state.deployed, self._job.validation_loaders, held_out)

    def of_client(self, client_id: ClientId, folder: Path | None) -> Path:
        """One client's model, evaluated on what the client holds back."""
        job, directory, number = self._job, self._directory, self._state.deployed_round
        client_id = _known(client_id, job.datamodule.client_ids)
        tunes = self._settings.fine_tuning is not None
        store = directory.fine_tuned if tunes else directory.client_store
        make = tuned_models_of if tunes else models_of
        models = make(self._settings, job, self._evaluator, Processes(None), store)
        if not models.own(client_id, number):
            raise ConfigurationError(f"client {client_id!r}: {self._why_none(store.holders(number))}")
        folder = directory.path / "clients" / str(client_id) if folder is None else folder
        loaders = as_loaders(job.datamodule.client_val_dataloader(client_id))
        state = models.of(client_id, number, self._state.deployed)
        return self._write(folder, state, loaders, f"what client {client_id} holds back")

    def _why_none(self, holders: Sequence[int]) -> str:
        if not holders:
            return (
                "no client of this run has a model of its own, as with trainer.personal_layers, ditto or fine_tuning: "
                "model/ is everybody's"
            )
        ids = self._job.datamodule.client_ids
        names = ", ".join(str(ids[position]) for position in holders[:_MOST_NAMED])
        if len(holders) > _MOST_NAMED:
            names += f" and {len(holders) - _MOST_NAMED} more"
        if self._settings.fine_tuning is not None:
            return f"it has not fine-tuned the model; those that have are {names}"
        number = self._state.deployed_round
        return f"it has nothing of its own by round {number}, the one that is deployed; those that have are {names}"

    def _write(self, folder: Path, state: StateDict, loaders: Sequence[Any], held_out: str) -> Path:
        settings, job = self._settings, self._job
        with told_to_user(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            is_taken = folder.exists() and not (folder / WEIGHTS).exists() and any(folder.iterdir())
        if is_taken:
            raise ConfigurationError(f"{folder}: holds something else than a model; give a new folder")
        inputs = job.datamodule.model_inputs()
        deployment = deploy(
            self._evaluator,
            state,
            loaders,
            job.probe.example_args,
            folder,
            held_out=held_out,
            exports=settings.export,
            inputs=inputs,
            pixels=None if settings.export_inputs is None else Pixels.told_by(inputs),
        )
        for file in deployment.files:
            if file.reason:
                rank_zero_warn(f"{folder / file.name}: not written: {file.reason}")
        if inputs is not None:
            write_atomically(folder / INPUTS, json.dumps(inputs, indent=2, allow_nan=False) + "\n")
        return folder


def _known(client_id: ClientId, ids: Sequence[ClientId]) -> ClientId:
    """The client that an id, or its text, names."""
    text = str(client_id)
    found: ClientId | None
    if isinstance(ids, range):  # of a billion clients, say: not one is made to look for another
        found = int(text) if re.fullmatch(r"-?[0-9]+", text) and int(text) in ids else None
    else:
        found = next((each for each in ids if str(each) == text), None)
    if found is None:
        alike = "" if isinstance(ids, range) else nearest(text, [str(each) for each in ids])
        raise ConfigurationError(f"client {client_id!r}: the data know of no such client, of {len(ids)}{alike}")
    return found
