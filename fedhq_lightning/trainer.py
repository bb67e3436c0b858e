"""`FederatedTrainer`: the façade, and the round loop on Lightning Fabric."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import yaml
from lightning.fabric import Fabric
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_helpers import is_overridden

from fedhq_lightning import tracking
from fedhq_lightning.allocation import Allocator
from fedhq_lightning.completion import complete
from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.devices import FleetSpec
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.federated import assembly, checks
from fedhq_lightning.federated.aggregators import Aggregator, FedAvg
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.federated.client_trainer import FitOptions
from fedhq_lightning.federated.description import check_same, describe, text_of
from fedhq_lightning.federated.link import Downlink, Uplink
from fedhq_lightning.federated.processes import Processes, lightning_quiet
from fedhq_lightning.federated.rounds import RoundLoop
from fedhq_lightning.federated.run_directory import RunDirectory, load_checkpoint
from fedhq_lightning.federated.run_state import RunState
from fedhq_lightning.files import write_atomically
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.reporting.progress import ProgressDisplay

_SETTINGS_THAT_CHANGE_NO_BIT = frozenset(
    f"trainer.{name}"
    for name in (
        "accelerator",
        "devices",
        "num_nodes",
        "strategy",
        "logger",
        "default_root_dir",
        "enable_progress_bar",
        "checkpoint_every_n_rounds",
    )
)
_PRECISIONS = ("32-true", "bf16-mixed")


class FederatedTrainer:
    """Trains one LightningModule over many clients, in fp, PTQ and QAT lanes.

    Args:
        max_rounds: Rounds in all.
        clients_per_round: Cohort: a count, a fraction in (0, 1], or None for every client.
        local_epochs: Passes over a client's data in one round; 1 unless `local_steps` is given.
        local_steps: Optimizer steps in one round, instead of epochs.
        scheme: Deployment grid, such as "w4a8", or None for a model that stays fp32.
        aggregator: Server's step; FedAvg by default.
        uplink: "weights": clients send their model rounded to the scheme's grid; "delta": its difference to the one
            they received. Without a scheme, fp32.
        downlink: "fp32", or "scheme": the global model goes down rounded to the grid.
        fleet: Devices of the clients, for the virtual clock: a name, a file, or a list of profiles.
        monitor: Validation metric by which the best round is chosen; default: the first that validation logs.
        monitor_mode: "min" or "max"; default: "min" for names with loss or error, else "max".
        callbacks: Round callbacks, and one allocator at most; without one every client trains in fp.
        logger: True for Weights & Biases (offline unless WANDB_MODE says otherwise), False, or Lightning loggers.
        accelerator: As in Lightning.
        devices: Processes on this node, as in Lightning.
        num_nodes: As in Lightning.
        strategy: As in Lightning's Fabric; modules are never wrapped by it.
        precision: "32-true" or "bf16-mixed".
        threads: Torch threads of each process. Part of the recipe, because bits may depend on it.
        gradient_clip_val: Norm to which local gradients are clipped.
        accumulate_grad_batches: Batches to one optimizer step.
        round_lr: Learning rate over rounds: "constant", "cosine", "linear", or a factor per round.
        round_deadline: Virtual seconds after which a round ends without the clients that are late.
        ema_decay: Evaluate and deploy an exponential moving average of the global models with this decay.
        eval_every_n_rounds: Evaluate after every so many rounds, and after the last.
        checkpoint_every_n_rounds: Likewise for checkpoints.
        enable_progress_bar: Show progress, and the result at the end.
        seed: Where every random number of the run comes from.
        default_root_dir: Run directories are made in `default_root_dir/RECIPE/`.

    Attributes:
        run_dir: The run directory, once `fit` has begun.
        summary: What `summary.json` holds, after `fit`.
        should_stop: Set it in a callback to end the run after this round.

    Raises:
        ConfigurationError: A value that cannot work.
    """

    def __init__(
        self,
        max_rounds: int = 10,
        clients_per_round: int | float | None = None,
        local_epochs: int | None = None,
        local_steps: int | None = None,
        scheme: str | QuantScheme | None = None,
        aggregator: Aggregator | None = None,
        uplink: Uplink = "weights",
        downlink: Downlink = "fp32",
        fleet: FleetSpec = "uniform",
        monitor: str | None = None,
        monitor_mode: Literal["min", "max"] | None = None,
        callbacks: Sequence[RoundCallback | Allocator] | RoundCallback | Allocator | None = None,
        logger: bool | Logger | list[Logger] = True,
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        threads: int = 1,
        gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
        round_lr: Literal["constant", "cosine", "linear"] | float = "constant",
        round_deadline: float | None = None,
        ema_decay: float | None = None,
        eval_every_n_rounds: int = 1,
        checkpoint_every_n_rounds: int = 1,
        enable_progress_bar: bool = True,
        seed: int = 0,
        default_root_dir: str | Path = "runs",
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self._settings = describe(settings)
        for name in ("max_rounds", "threads", "accumulate_grad_batches", "local_epochs", "local_steps"):
            _check_whole(name, settings[name])
        for name in ("eval_every_n_rounds", "checkpoint_every_n_rounds"):
            _check_whole(name, settings[name])
        for name in ("round_deadline", "gradient_clip_val"):
            _check_positive(name, settings[name])
        _check_choice("uplink", uplink, ("weights", "delta"))
        _check_choice("downlink", downlink, ("fp32", "scheme"))
        _check_choice("precision", precision, _PRECISIONS)
        if monitor_mode is not None:
            _check_choice("monitor_mode", monitor_mode, ("min", "max"))
        if local_epochs is not None and local_steps is not None:
            raise ConfigurationError("local_epochs and local_steps are both given; set one of them to null")
        if isinstance(round_lr, str):
            _check_choice("round_lr", round_lr, ("constant", "cosine", "linear"))
        else:
            _check_positive("round_lr", round_lr)
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ConfigurationError(f"ema_decay {ema_decay}: must be between 0 and 1")

        self.max_rounds = max_rounds
        self.clients_per_round = clients_per_round
        epochs = 1 if local_steps is None and local_epochs is None else local_epochs
        self.fit_options = FitOptions(epochs, local_steps, gradient_clip_val, accumulate_grad_batches)
        self.scheme = None if scheme is None else QuantScheme.parse(scheme)
        self.aggregator = aggregator or FedAvg()
        self._fresh_aggregator = copy.deepcopy(self.aggregator.state_dict())
        self.uplink: Uplink = uplink
        self.downlink: Downlink = downlink
        self.fleet = fleet
        self.monitor = monitor
        self.monitor_mode: str | None = monitor_mode
        self.callbacks, self.allocator = _split(callbacks)
        if enable_progress_bar and not any(isinstance(each, ProgressDisplay) for each in self.callbacks):
            self.callbacks.append(ProgressDisplay())
        self.logger = logger
        self.precision = precision
        self.threads = threads
        self.round_lr = round_lr
        self.round_deadline = round_deadline
        self.ema_decay = ema_decay
        self.eval_every_n_rounds = eval_every_n_rounds
        self.checkpoint_every_n_rounds = checkpoint_every_n_rounds
        self.seed = seed
        self.default_root_dir = Path(default_root_dir)
        try:
            with lightning_quiet():
                self.fabric = Fabric(
                    accelerator=accelerator,
                    devices=devices,
                    num_nodes=num_nodes,
                    strategy=strategy,
                    precision=precision,
                )
        # Fabric's own words for values that it does not know, and for hardware that is not there.
        except (ValueError, TypeError, RuntimeError) as error:
            raise ConfigurationError(
                f"accelerator {accelerator!r}, devices {devices!r}, strategy {strategy!r}: {error}"
            ) from error
        self.recipe: Recipe | None = None
        self.run_dir = self.default_root_dir
        self.summary: dict[str, Any] = {}
        self.should_stop = False

    @property
    def is_global_zero(self) -> bool:
        """Whether this process prints and writes."""
        return self.fabric.is_global_zero

    def fit(
        self, module: L.LightningModule, datamodule: FederatedDataModule, ckpt_path: str | Path | None = None
    ) -> None:
        """Run all rounds, then write the deployed model, the summary and the report.

        Afterwards `module` holds the float32 weights of the deployed round.

        Args:
            module: Any LightningModule with automatic optimization and one optimizer. Copied; its class is left alone.
            datamodule: The clients' data.
            ckpt_path: A run directory, or one of its checkpoints, to go on from.

        Raises:
            ConfigurationError: Whatever can be known to be wrong before round 1; nothing is written then.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            self._fit(module, datamodule, None if ckpt_path is None else Path(ckpt_path))
        finally:
            torch.set_num_threads(threads)

    def validate(self, module: L.LightningModule, datamodule: L.LightningDataModule) -> dict[str, float]:
        """Metrics of `module` on the held-out batches, as `fp/NAME` and `quantized/NAME`."""
        return self._evaluate_once(module, datamodule, "validation")

    def test(self, module: L.LightningModule, datamodule: L.LightningDataModule) -> dict[str, float]:
        """The same with `test_step` on the test batches."""
        return self._evaluate_once(module, datamodule, "test")

    def _fit(self, module: L.LightningModule, datamodule: FederatedDataModule, ckpt_path: Path | None) -> None:
        assembly.check_types(module, datamodule)
        described = {"trainer": self._settings, "model": describe(module), "data": describe(datamodule)}
        if self.recipe is not None:
            described["recipe"] = yaml.safe_load(self.recipe.text)
        resumed = None if ckpt_path is None else _open_checkpoint(ckpt_path, described)
        job = assembly.set_up(self, module, datamodule)
        # From the settings, not from the attributes: those hold what an earlier fit has found.
        self.monitor = checks.resolve_monitor(self._settings["monitor"], job.probe)
        self.monitor_mode = checks.resolve_monitor_mode(self.monitor, self._settings["monitor_mode"])
        tracking.check_logger(self.logger)
        recipe = self.recipe or Recipe(type(module).__name__.lower(), text_of(described))
        directory = resumed.directory if resumed else self._new_directory(recipe)

        with lightning_quiet():
            self.fabric.launch()
        processes = Processes(self.fabric)
        self.run_dir = Path(processes.broadcast(str(directory.path)))
        directory = RunDirectory(self.run_dir)
        if resumed:
            state = RunState.from_checkpoint(resumed.saved["state"], directory.read_rounds())
            processes.barrier()
            if self.is_global_zero:
                directory.rewind(state.round)
            self._load_parts(resumed.saved, job.allocator)
        else:
            state = RunState(job.initial_state())
            self.aggregator.load_state_dict(self._fresh_aggregator)
        self.should_stop = state.stopped
        loggers: list[Logger] = []
        try:
            if self.is_global_zero:
                loggers = tracking.make_loggers(self.logger, self.run_dir, recipe.name, described)
            self.call("on_fit_start")
            rounds = RoundLoop(self, job, processes, directory, state, loggers, described)
            rounds.run()
            if self.is_global_zero:
                self.summary = complete(self, rounds, recipe.name)
                tracking.finish(loggers, self.summary, self.run_dir)
            self.summary = processes.broadcast(self.summary)
            if module.state_dict().keys() != state.deployed.keys():
                assembly.build_layers(module, self.fit_options)
            module.load_state_dict(state.deployed)
            self.call("on_fit_end")
        except BaseException as error:
            self.call("on_exception", error)
            tracking.finish(loggers, {}, self.run_dir, "failed")
            if isinstance(error, ConfigurationError) and self.is_global_zero and not state.records:
                shutil.rmtree(self.run_dir)
            raise

    def call(self, hook: str, *arguments: Any) -> None:
        """Notify every round callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    def _new_directory(self, recipe: Recipe) -> RunDirectory:
        """Process 0 makes the folder and tells the others after launch."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return RunDirectory(self.default_root_dir)
        directory = RunDirectory.create(self.default_root_dir, recipe.name)
        write_atomically(directory.path / "recipe.yaml", recipe.text)
        return directory

    def _load_parts(self, saved: dict[str, Any], allocator: Allocator) -> None:
        self.aggregator.load_state_dict(saved["aggregator"])
        allocator.load_state_dict(saved["allocator"])
        for callback in self.callbacks:
            if callback.state_key in saved["callbacks"]:
                callback.load_state_dict(saved["callbacks"][callback.state_key])

    def _evaluate_once(
        self, module: L.LightningModule, datamodule: L.LightningDataModule, stage: Literal["validation", "test"]
    ) -> dict[str, float]:
        if not is_overridden(f"{stage}_step", module):
            raise ConfigurationError(f"{type(module).__name__} has no {stage}_step; add one that logs a metric")
        assembly.prepare_data(datamodule, "validate" if stage == "validation" else "test")
        template = assembly.set_up_template(module, self.fit_options)
        with lightning_quiet():
            self.fabric.launch()
        evaluator = assembly.evaluator_of(self, template, Processes(self.fabric))
        loaders = datamodule.val_dataloader() if stage == "validation" else datamodule.test_dataloader()
        return evaluator.evaluate(template.state_dict(), checks.as_loaders(loaders), stage)


@dataclass(frozen=True)
class Recipe:
    """Name and resolved text of the recipe that a run was started from; the command line sets `trainer.recipe`."""

    name: str
    text: str


@dataclass(frozen=True)
class _Resumed:
    directory: RunDirectory
    saved: dict[str, Any]


def _open_checkpoint(ckpt_path: Path, described: dict[str, Any]) -> _Resumed:
    directory, path = RunDirectory.of_checkpoint(ckpt_path)
    saved = load_checkpoint(path)
    if "described" not in saved:
        raise ConfigurationError(f"{path}: one round's model, not where a run stood; give a run directory")
    before, now = saved["described"], described
    if "recipe" in before and "recipe" in now:
        # It tells more than objects tell about themselves.
        before, now = before["recipe"], now["recipe"]
    check_same(before, now, _SETTINGS_THAT_CHANGE_NO_BIT)
    return _Resumed(directory, saved)


def _split(
    callbacks: Sequence[RoundCallback | Allocator] | RoundCallback | Allocator | None,
) -> tuple[list[RoundCallback], Allocator | None]:
    given = [callbacks] if isinstance(callbacks, RoundCallback | Allocator) else list(callbacks or [])
    allocators = [each for each in given if isinstance(each, Allocator)]
    if len(allocators) > 1:
        names = ", ".join(type(each).__name__ for each in allocators)
        raise ConfigurationError(f"callbacks hold {len(allocators)} allocators ({names}); give one at most")
    for each in given:
        if not isinstance(each, RoundCallback | Allocator):
            raise ConfigurationError(
                f"callbacks: {type(each).__name__} is neither a RoundCallback nor an Allocator; Lightning's own "
                "callbacks belong to lightning.Trainer"
            )
    rest = [each for each in given if isinstance(each, RoundCallback)]
    keys = [each.state_key for each in rest]
    if len(set(keys)) != len(keys):
        raise ConfigurationError(f"callbacks: two share the state_key {max(keys, key=keys.count)!r}; give each its own")
    return rest, allocators[0] if allocators else None


def _check_whole(name: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ConfigurationError(f"{name} {value!r}: must be a whole number, 1 or more")


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} {value!r}: must be greater than 0")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} {value!r}: must be one of {', '.join(allowed)}{nearest(value, allowed)}")
