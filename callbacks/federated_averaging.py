"""Federated training inside `lightning.pytorch.Trainer`: a process is a silo, and rounds end in one global model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from fedhq_lightning.devices import FleetSpec
from fedhq_lightning.drop_in.deployed_model import model_folder
from fedhq_lightning.drop_in.lane_swap import Lane, refuse_unsupported
from fedhq_lightning.drop_in.quantized_callback import plain_scheme
from fedhq_lightning.drop_in.trainer_parts import training_loaders
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.federated.algorithms.aggregator import Aggregator, ClientStart, ClientTerm
from fedhq_lightning.federated.algorithms.fed_avg import FedAvg
from fedhq_lightning.federated.update_checks import check_norm_ratio
from fedhq_lightning.federated.wire import Uplink
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.silos import silo_checkpoint
from fedhq_lightning.silos.local_work import LocalWork
from fedhq_lightning.silos.silo_callback import SiloCallback
from fedhq_lightning.silos.silo_checks import refuse_client_state, refuse_layers, refuse_loaders, refuse_settings
from fedhq_lightning.silos.silo_results import epoch_values
from fedhq_lightning.silos.silo_run import SiloRun
from fedhq_lightning.silos.silo_settings import SiloSettings
from fedhq_lightning.silos.silo_strategy import SiloStrategy, register
from fedhq_lightning.support.paths import expand_if_given
from fedhq_lightning.support.seeds import derive_seed, seed_generators


class FederatedAveraging(SiloCallback):
    """Makes a federation of the Trainer's processes: each trains on its own data, and rounds end in one average.

    Needs `Trainer(strategy="fedhq", use_distributed_sampler=False)`; with `devices=4` there are four silos. A silo's
    data are what its `train_dataloader` gives, by `self.trainer.global_rank`. At the end of a round, before Lightning
    validates, every silo encodes its model on the scheme's grid, the bytes go to all silos, and each checks, decodes
    and averages them alike, weighted by the examples seen. The global model is copied into the silo's own tensors, so
    that optimizers and schedulers go on. Validation sees the global model; what it logs is averaged over silos.

    An allocator among the callbacks puts every silo into a lane, round by round; without one all train in fp.

    Args:
        every_n_epochs: Epochs to a round.
        scheme: Grid of the payloads and of the deployed model, such as "w4a8"; None sends fp32 and deploys nothing.
        uplink: "delta": a silo sends what it changed. "weights": its model.
        lanes: How PTQ and QAT compute; None is `LaneOptions()`.
        aggregator: The step from the average to the next global model; None is `FedAvg()`.
        fleet: Devices of the silos, for virtual seconds and for the allocator: a name, a file or a list of profiles.
        retake_batch_statistics: Have BatchNorm statistics taken anew by the silos at the end of every round, of the
            float32 and of the deployed view of the global model; False: the silos' running ones are averaged.
        max_norm_ratio: How many times the silos' median norm an update may have; one that has more is quarantined. None
            for any. Of two silos none is told from the other.
        keys: Folder with this silo's private key `RANK.key` and all silos' public ones, `RANK.pub`, where the silos do
            not trust the network between them: see `federated.seals`. None: payloads are not signed.
        export: Write the deployed model when `fit` ends.
        dirpath: Its folder; None is `model` beside ModelCheckpoint's `checkpoints`.

    Raises:
        ConfigurationError: A value that cannot work.

    Attributes:
        deployed_path: The file of the deployed model, once it is written.

    Example::

        trainer = L.Trainer(
            devices=4,
            strategy="fedhq",
            use_distributed_sampler=False,
            callbacks=[FederatedAveraging(scheme="w4a8"), HybridAllocator()],
        )
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        scheme: str | QuantScheme | None = None,
        uplink: Uplink = "delta",
        lanes: LaneOptions | None = None,
        aggregator: Aggregator | None = None,
        fleet: FleetSpec = "uniform",
        retake_batch_statistics: bool = True,
        max_norm_ratio: float | None = 20.0,
        keys: str | Path | None = None,
        export: bool = True,
        dirpath: str | Path | None = None,
    ) -> None:
        if isinstance(every_n_epochs, bool) or not isinstance(every_n_epochs, int) or every_n_epochs < 1:
            raise ConfigurationError(f"every_n_epochs {every_n_epochs!r}: must be a whole number, 1 or more")
        if uplink not in ("weights", "delta"):
            raise ConfigurationError(
                f"uplink {uplink!r}: must be one of weights, delta{nearest(str(uplink), ('weights', 'delta'))}"
            )
        if lanes is not None and lanes.bias_correction:
            raise ConfigurationError(
                "lanes.bias_correction needs a batch that a client keeps apart, as FederatedTrainer has it; leave it "
                "out of FederatedAveraging"
            )
        check_norm_ratio(max_norm_ratio)
        super().__init__(None if scheme is None else QuantScheme.parse(scheme), export, dirpath)
        register()  # with what is imported by now
        self.every_n_epochs = every_n_epochs
        self.uplink: Uplink = uplink
        self.lanes = lanes
        self.aggregator = aggregator or FedAvg()
        self.fleet = fleet
        self.retake_batch_statistics = retake_batch_statistics
        self.max_norm_ratio = max_norm_ratio
        self.keys = expand_if_given(keys, "keys")
        self._run: SiloRun | None = None
        self._restored: dict[str, Any] = {}
        self._extras: dict[str, Any] | None = None
        self._logs = Path()
        self._local = LocalWork()
        self._lane: Lane | None = None
        self._term: ClientTerm | None = None
        self._is_open, self._since, self._steps_before = False, 0.0, 0

    @property
    def state_key(self) -> str:
        """One key whatever the arguments are, so that a resumed run finds what the first was trained with."""
        return "FederatedAveraging"

    def state_dict(self) -> dict[str, Any]:
        """Settings, and where the run stands; the same on every silo."""
        state: dict[str, Any] = dict(self._restored) if self._run is None else self._run.state_dict()
        return state | self._kept_on_resume() | {"statistics": self._statistics.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written.

        Raises:
            ConfigurationError: It was trained with other settings.
        """
        if "statistics" in state_dict:  # not in checkpoints of 0.2
            self._statistics.load_state_dict(state_dict["statistics"])
        if not self._is_fitting:
            return
        before = {"retake_batch_statistics": True, "max_norm_ratio": self.max_norm_ratio}  # of earlier versions
        self._refuse_other_settings(before | state_dict, self._kept_on_resume())
        self._restored = state_dict

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything is trained or loaded."""
        self._is_fitting = stage == "fit"
        if self._is_fitting:
            refuse_settings(trainer, self.every_n_epochs, self.scheme)
            self._run, self._restored, self._extras = None, {}, None
            self._logs = model_folder(trainer).parent
        if self.scheme is not None and stage != "predict":
            refuse_unsupported(trainer, pl_module)
        self._begin(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the layers, which are complete by now."""
        refuse_layers(pl_module)
        refuse_client_state(self.aggregator, pl_module)
        refuse_unsupported(trainer, pl_module, self.scheme)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give all silos the weights of rank 0, and begin the allocator with what they tell of their data."""
        refuse_loaders(trainer)
        self._run = SiloRun(
            self._silo_settings(), trainer, pl_module, self._logs, self._restored, self._extras, self._statistics
        )
        self._local = LocalWork(**self._extras["local"]) if self._extras else LocalWork()
        self._is_open = False
        self._restored, self._extras = {}, None
        self._record_arguments(pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a round, or go on in it, in the silo's lane."""
        run = self._running()
        seed_generators(derive_seed(run.seed, "silo", trainer.current_epoch, run.processes.rank))
        if run.epochs_in_round == 0:
            self._local = run.begin_round(trainer, pl_module)
        self._term = self.aggregator.client_term(ClientStart(pl_module))
        self._enter_lane(pl_module)
        self._is_open, self._since, self._steps_before = True, time.perf_counter(), trainer.global_step
        _renew_iterator(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the aggregator's term to the gradients."""
        if self._term is not None:
            self._term.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count examples and the loss."""
        self._local.add(batch, outputs, trainer.accumulate_grad_batches, training_loaders(trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the round, so that validation sees the global model."""
        if self._is_open and not trainer.sanity_checking:
            self._end_epoch(trainer, pl_module, validates=True)
        super().on_validation_start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the batch, unless in a sanity check, when every silo has first weights of its own."""
        if not trainer.sanity_checking:
            super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate the quantized model on the same batch."""
        if not trainer.sanity_checking:
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the allocator of the round, with its metrics."""
        if self._run is not None and not trainer.sanity_checking:
            super().on_validation_end(trainer, pl_module)
            self._run.observe(trainer, epoch_values(trainer._results or {}))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the round where no validation did."""
        if self._is_open:
            self._end_epoch(trainer, pl_module, validates=False)

    def on_epoch_agreed(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the allocator of the round where no validation did, with what training logged."""
        self._running().observe(trainer, {})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End with one global model, also where the fit ends in the middle of a round."""
        run = self._running()
        if run.epochs_in_round:
            self._leave_lane(pl_module)
            run.end_round(trainer, pl_module, self._local)
            run.observe(trainer, {})
        self._leave_lane(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the lane, whatever happened."""
        self._leave_lane(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module as it came."""
        self._leave_lane(pl_module)
        self._stop_reporting()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what is each silo's own, and have the global model as the module's state.

        Raises:
            ConfigurationError: Within an epoch, when the other silos do not save too.
        """
        run = self._run
        if run is None or not isinstance(trainer.strategy, SiloStrategy):
            return
        if self._is_open:
            raise ConfigurationError(
                "a checkpoint within an epoch: it holds the state of every silo, and they are not at the same batch; "
                "save at the end of an epoch"
            )
        rank = run.processes.rank
        agreed = [self.state_key, *run.agreed_state_keys]
        part = silo_checkpoint.own_part(checkpoint, agreed) if rank else {}
        if run.epochs_in_round:
            state = pl_module.state_dict()
            model = {name: state[name].detach().cpu() for name in run.round.received}
            part[silo_checkpoint.KEY] = {"model": model, "local": vars(self._local)}
            checkpoint["state_dict"] = checkpoint["state_dict"] | run.round.received
        parts = run.processes.gather_bytes_on_first(silo_checkpoint.packed(part))
        if parts:
            silo_checkpoint.add_parts(checkpoint, parts)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take this silo's own part.

        Raises:
            ConfigurationError: The checkpoint is of another number of silos.
        """
        if not self._is_fitting:
            return
        received = checkpoint["state_dict"]
        self._extras = silo_checkpoint.take_part(
            checkpoint, trainer.global_rank, trainer.world_size, getattr(trainer.strategy, "weights_only", None)
        )
        if self._extras:
            self._extras["received"] = received
            pl_module.load_state_dict(self._extras["model"], strict=False)

    def _silo_settings(self) -> SiloSettings:
        return SiloSettings(
            self.every_n_epochs,
            self.scheme,
            self.uplink,
            self.lanes,
            self.aggregator,
            self.fleet,
            self.retake_batch_statistics,
            self.max_norm_ratio,
            None if self.keys is None else Path(self.keys),
        )

    def _kept_on_resume(self) -> dict[str, Any]:
        """Settings that a resumed run has to keep, as plain values."""
        return {
            "every_n_epochs": self.every_n_epochs,
            "uplink": self.uplink,
            "retake_batch_statistics": self.retake_batch_statistics,
            "max_norm_ratio": self.max_norm_ratio,
            **plain_scheme(self.scheme),
        }

    def _end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, validates: bool) -> None:
        self._is_open = False
        self._leave_lane(pl_module)
        self._local.wall_seconds += time.perf_counter() - self._since
        self._local.num_steps += trainer.global_step - self._steps_before
        run = self._running()
        if run.end_epoch(trainer, validates):
            run.end_round(trainer, pl_module, self._local)

    def _enter_lane(self, pl_module: pl.LightningModule) -> None:
        mode = self._running().mode
        if mode != "fp" and self.scheme is not None:
            self._lane = Lane(mode, self.scheme, self.lanes)
            self._lane.enter(pl_module)

    def _leave_lane(self, pl_module: pl.LightningModule) -> None:
        if self._lane is not None:
            self._lane.leave(pl_module)
            self._lane = None

    def _running(self) -> SiloRun:
        assert self._run is not None
        return self._run


def _renew_iterator(trainer: pl.Trainer) -> None:
    """Make the first epoch of a fit draw what its loaders draw after seeding, as Lightning does in every later one.

    Else an epoch after a resume would shuffle otherwise than the same epoch in an unbroken run.
    """
    loop: Any = trainer.fit_loop
    is_renewed = trainer.current_epoch > 0 and not loop.is_resuming and not loop.epoch_loop.restarting
    if not is_renewed and loop._data_fetcher is not None:
        iter(loop._data_fetcher)
