"""One client's model, deployed: the global one with the layers that the client keeps for itself."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.deploy.from_state import deploy
from fedhq_lightning.deploy.pixels import Pixels
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.federated import setup
from fedhq_lightning.federated.after_fit import AfterFit
from fedhq_lightning.federated.parts import evaluator_of, models_of
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.federated.setup import Job
from fedhq_lightning.local.evaluation import Evaluator, as_loaders
from fedhq_lightning.run.directory import INPUTS, RunDirectory
from fedhq_lightning.run.round_checkpoint import read_round
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.arithmetic import reproducible
from fedhq_lightning.support.atomic_files import told_to_user, write_atomically
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.types import ClientId


class ExportsClients(AfterFit):
    """What a trainer does with the models of single clients. `FederatedTrainer` inherits it."""

    def export_client(
        self,
        client_id: ClientId,
        folder: str | Path | None = None,
        module: L.LightningModule | None = None,
        datamodule: FederatedDataModule | None = None,
    ) -> Path:
        """Write the deployed model of one client, with its personal layers, of the run in `run_dir`.

        Args:
            client_id: The client.
            folder: Default: `clients/ID/` of the run directory.
            module: Of the run; default, as for the data: that of the last `fit`.
            datamodule: The clients' data.

        Returns:
            The folder, with all that a run's `model/` holds.

        Raises:
            ConfigurationError: No such client, or one that has no model of its own.
        """
        settings, fabric = self.settings, self.fabric
        module = self._fitted if module is None else module
        if module is None:
            raise ConfigurationError("export_client: no module; give one, or call fit before")
        data = setup.check_types(module, self._fitted_on if datamodule is None else datamodule)
        with reproducible(settings.threads, fabric.device):
            job = setup.set_up(settings, fabric, module, data, resumes=True)
            evaluator = evaluator_of(settings, fabric, job.template, Processes(None), data)
            place = None if folder is None else Path(folder)
            return write_client_model(settings, job, evaluator, RunDirectory(self.run_dir), client_id, place)


def write_client_model(
    settings: RunSettings,
    job: Job,
    evaluator: Evaluator,
    directory: RunDirectory,
    client_id: ClientId | str,
    folder: Path | None = None,
) -> Path:
    """Write what a run's `model/` would hold, for one client, evaluated on what it holds back.

    Args:
        settings: Of the run.
        job: Checked inputs, of the run's module and data.
        evaluator: Converts the module.
        directory: Of the run, from whose newest checkpoint the deployed round is taken.
        client_id: The client, or its id as text.
        folder: Made if needed; default: `clients/ID/` of the run directory.

    Returns:
        The folder.

    Raises:
        ConfigurationError: No checkpoint, no such client, or one that has no model of its own.
    """
    known = {str(each): each for each in job.datamodule.client_ids}
    if str(client_id) not in known:
        raise ConfigurationError(
            f"client {client_id!r}: the data know of no such client, of {len(known)}{nearest(str(client_id), known)}"
        )
    client_id = known[str(client_id)]
    if not (saved := directory.saved_checkpoints()):
        raise ConfigurationError(f"{directory.path}: holds no checkpoint, so there is no model of a client; call fit")
    state = RunState.from_checkpoint(read_round(saved[-1])["state"], [])
    models = models_of(settings, job, evaluator, Processes(None), directory.client_store)
    if not models.own(client_id, state.deployed_round):
        raise ConfigurationError(
            f"client {client_id!r}: it has nothing of its own by round {state.deployed_round}, the one that is "
            "deployed: it had not taken part, or the run has no personal_layers, and model/ is everybody's"
        )
    folder = directory.path / "clients" / str(client_id) if folder is None else folder
    with told_to_user(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    inputs = job.datamodule.model_inputs()
    deploy(
        evaluator,
        models.of(client_id, state.deployed_round, state.deployed),
        as_loaders(job.datamodule.client_val_dataloader(client_id)),
        job.probe.example_args,
        folder,
        held_out=f"what client {client_id} holds back",
        exports=settings.export,
        inputs=inputs,
        pixels=None if settings.export_inputs is None else Pixels.told_by(inputs),
    )
    if inputs is not None:
        write_atomically(folder / INPUTS, json.dumps(inputs, indent=2, allow_nan=False) + "\n")
    return folder
