"""`FederatedTrainer`: the facade. It hands a frozen `RunSettings` down, and itself only as a `RoundControl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import lightning as L

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.data.partitioned import unwrapped
from fedhq_lightning.devices import FleetSpec
from fedhq_lightning.devices.fleet import expand_fleet
from fedhq_lightning.federated import parts, setup
from fedhq_lightning.federated.algorithms.aggregator import Aggregator
from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator
from fedhq_lightning.federated.callback import Monitored, RoundCallback, split_callbacks
from fedhq_lightning.federated.client_errors import OnClientError
from fedhq_lightning.federated.client_evaluation import ClientEvaluation
from fedhq_lightning.federated.client_uplink import Rounding
from fedhq_lightning.federated.combinations import check_combinations
from fedhq_lightning.federated.endings import told_to_all
from fedhq_lightning.federated.fabric import make_fabric
from fedhq_lightning.federated.failing_clients import NoUsableUpdatesError
from fedhq_lightning.federated.fine_tuning import FineTuning
from fedhq_lightning.federated.lightning_habits import plain_precision, with_lightning_names
from fedhq_lightning.federated.personal.personal_layers import PersonalLayers
from fedhq_lightning.federated.privacy.mechanisms import Privacy
from fedhq_lightning.federated.robust.rule import RobustRule
from fedhq_lightning.federated.rounds import RoundLoop
from fedhq_lightning.federated.run_description import describe_run
from fedhq_lightning.federated.run_start import RunStart
from fedhq_lightning.federated.same_everywhere import check_same_everywhere, check_shared_folder
from fedhq_lightning.federated.secure.secure_aggregation import SecureAggregation
from fedhq_lightning.federated.settings import RunSettings, check_settings
from fedhq_lightning.federated.wire import Downlink, Uplink
from fedhq_lightning.finish.complete import complete
from fedhq_lightning.finish.exported_models import ExportsModels
from fedhq_lightning.local.data_hooks import release_data
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.local.module_state import load_weights
from fedhq_lightning.local.template import build_like
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.report.progress import ProgressDisplay
from fedhq_lightning.run.description import Recipe, describe, text_of
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.run_names import check_name, run_if_given
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support import process_group
from fedhq_lightning.support.arithmetic import reproducible
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.lightnings import AnyLogger
from fedhq_lightning.support.memory import keep_freed_memory
from fedhq_lightning.support.paths import expand_if_given
from fedhq_lightning.support.phase_clock import PhaseClock
from fedhq_lightning.support.views import users_view
from fedhq_lightning.tracking import check_logger
from fedhq_lightning.tracking.callback import Tracking
from fedhq_lightning.types import MonitorMode


class FederatedTrainer(ExportsModels):
    """Trains one LightningModule over many clients, in fp, PTQ and QAT lanes.

    Args:
        max_rounds: Rounds in all.
        clients_per_round: Cohort: a count, a fraction in (0, 1], or None for every client.
        local_epochs: Passes over a client's data in one round; 1 unless `local_steps` is given.
        local_steps: Optimizer steps in one round, instead of epochs.
        scheme: Deployment grid, such as "w4a8", or None for a model that stays fp32.
        lanes: How PTQ and QAT compute; None is `LaneOptions()`.
        aggregator: Server's step; FedAvg by default.
        personal_layers: Patterns of layers that every client keeps for itself, "batch_norm", or a `PersonalLayers`.
        ditto: Train a model of each client's own beside the global one, held to it this strongly; None for none.
        fine_tuning: Have the clients that evaluate train the deployed model on their own data after the last round, for
            themselves alone: how long, and at which rate. None: they take it as it is.
        uplink: "delta": clients send the difference of their model to the one they received, rounded to the bits of the
            scheme; "weights": their model, rounded to its grid. Without a scheme, fp32.
        downlink: "fp32", or "scheme": the global model goes down rounded to the grid.
        uplink_bits: Of weights on their way up; None for the scheme's. Its first and last layer keep theirs.
        uplink_rounding: "nearest", or "stochastic": up or down at random, so that means over clients are exact.
        error_feedback: A client adds to its update what rounding took of its last one.
        privacy: `CentralPrivacy` hides clients, `LocalPrivacy` their examples, up to an epsilon; None for neither.
        secure_aggregation: Have clients mask what they send, so that the server learns the sum alone.
        fleet: Devices of the clients, for the virtual clock: a name, a file, or a list of profiles.
        monitor: Validation metric by which the best round is chosen; default: the first that validation logs.
        monitor_mode: "min" or "max"; default: by the words of the name, refused where they do not tell.
        callbacks: Round callbacks, and one allocator at most; without one every client trains in fp.
        logger: True for Weights & Biases (offline unless WANDB_MODE says otherwise), False, or Lightning loggers.
        accelerator: Kind of device: "cpu", "cuda", or "auto" for the best that is there.
        devices: Processes on this node, as in Lightning; [0, 0] is two on the first GPU.
        num_nodes: Machines that run this script, each with `devices` processes.
        strategy: One of Lightning Fabric's that start processes by running the script again; it never wraps a module.
        process_timeout: Seconds after which a process that does not answer ends the others; one that computes answers.
        precision: "32-true" or "bf16-mixed".
        threads: Torch threads of each process. Part of the recipe, because bits may depend on it.
        gradient_clip_val: Norm to which local gradients are clipped.
        accumulate_grad_batches: Batches to one optimizer step.
        round_lr: Learning rate over rounds: "constant", "cosine", "linear", or a factor per round.
        mode_lr: Factor on every learning rate of the clients in a mode, such as {"qat": 0.3}; 1 for the others.
        round_deadline: Virtual seconds after which a round ends without the clients that are late.
        measured_seconds: True: what local fits take, in wall seconds, stands in place of what the clock predicts, and
            allocators that learn times learn from it; the folder of a run: what they took there.
        on_client_error: What follows when a client's code raises: "quarantine", the round goes on without it; "retry",
            it tries once more before; "raise", the run ends. Without memory for its mode it is tried in fp before.
        min_clients: Usable updates that a round takes to move the model. Three rounds in a row without end the run.
        max_norm_ratio: How many times the cohort's median norm an update may have, or it is quarantined; None: any.
        robust_rule: Such as `Krum(2)`, in place of the mean weighted by examples; None for the mean. A round with fewer
            usable updates than it takes leaves the model.
        sit_out_rounds: Rounds that a client sits out which was quarantined three times in a row.
        ema_decay: Evaluate and deploy an exponential moving average of the global models with this decay.
        average_from: Evaluate and deploy the mean of the global models of this round and all later ones.
        retake_batch_statistics: Have BatchNorm statistics taken anew by the cohort, of the float32 and of the deployed
            view of every evaluated model and of the last; False: clients' running statistics are averaged.
        eval_every_n_rounds: Evaluate after every so many rounds, and after the last.
        evaluate_clients: How clients evaluate the models on what they hold back; None: 100 of them, where data have
            such examples, whenever the server evaluates. False: never.
        checkpoint_every_n_rounds: Write a checkpoint after every so many rounds, and after the last.
        final_evaluation: After the last round, evaluate the deployed model on test data, on each class and on clients,
            and time it. False leaves these figures null, and `metric_quantized` as the deployed round logged it.
        export: Files of the deployed model beside `model.pt2`: "onnx" for `model.onnx`, "executorch" for `model.pte`,
            "aoti" for `model.aoti.pt2`; one name, or several, or none.
        export_inputs: "pixels": the files of the deployed model take images as the data module has them before it
            normalizes them, by the mean and std that its `model_inputs` tells. None: they take what `forward` takes.
        enable_progress_bar: Show progress, and the result at the end.
        seed: Where every random number of the run comes from.
        name: What a new run is called: in its folder's name, in lists and pages, at W&B. A resumed one keeps its own.
        default_root_dir: Run directories are made in `default_root_dir/RECIPE/`.

    Attributes:
        settings: What was asked for, checked and frozen.
        described: The same as plain values, by the names of the arguments.
        monitored: Name and direction of the metric that the run watches, once `fit` has begun.
        run_dir: The run directory, once `fit` has begun.
        summary: What `summary.json` holds, after `fit`.
        should_stop: Set it in a callback to end the run after this round.
        writes_model: Set it to False before `fit` where the rounds and their figures are all that is wanted: then there
            is no `model/` and no report.
        clock: Where the wall time of the last `fit` went.
        client_place: Set it before `fit` where clients are elsewhere; `fedhq_lightning.flower` does.
        command_clock: Set it before `fit` to have what came before count too; the command line does.

    Raises:
        ConfigurationError: A value that cannot work.
    """

    @with_lightning_names()
    def __init__(
        self,
        max_rounds: int = 10,
        clients_per_round: int | float | None = None,
        local_epochs: int | None = None,
        local_steps: int | None = None,
        scheme: str | QuantScheme | None = None,
        lanes: LaneOptions | None = None,
        aggregator: Aggregator | None = None,
        personal_layers: PersonalLayers | list[str] | str | None = None,
        ditto: float | None = None,
        fine_tuning: FineTuning | None = None,
        uplink: Uplink = "delta",
        downlink: Downlink = "fp32",
        uplink_bits: int | None = None,
        uplink_rounding: Rounding = "nearest",
        error_feedback: bool = False,
        privacy: Privacy | None = None,
        secure_aggregation: SecureAggregation | None = None,
        fleet: FleetSpec = "uniform",
        monitor: str | None = None,
        monitor_mode: MonitorMode | None = None,
        callbacks: Sequence[RoundCallback | Allocator] | RoundCallback | Allocator | None = None,
        logger: bool | AnyLogger | list[AnyLogger] = True,
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        process_timeout: float = process_group.DEFAULT_SECONDS,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        threads: int = 1,
        gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
        round_lr: Literal["constant", "cosine", "linear"] | float = "constant",
        mode_lr: Mapping[str, float] | None = None,
        round_deadline: float | None = None,
        measured_seconds: bool | str | Path = False,
        on_client_error: OnClientError = "quarantine",
        min_clients: int = 1,
        max_norm_ratio: float | None = 20.0,
        robust_rule: RobustRule | None = None,
        sit_out_rounds: int = 10,
        ema_decay: float | None = None,
        average_from: int | None = None,
        retake_batch_statistics: bool = True,
        eval_every_n_rounds: int = 1,
        evaluate_clients: ClientEvaluation | bool | None = None,
        checkpoint_every_n_rounds: int = 1,
        final_evaluation: bool = True,
        export: str | Sequence[str] | None = ("onnx",),
        export_inputs: Literal["pixels"] | None = None,
        enable_progress_bar: bool = True,
        seed: int = 0,
        name: str | None = None,
        default_root_dir: str | Path = "runs",
    ) -> None:
        asked = {key: value for key, value in locals().items() if key != "self"} | {
            "lanes": lanes or LaneOptions(),
            "fleet": expand_fleet(fleet),
            "precision": plain_precision(precision),
            "measured_seconds": run_if_given(measured_seconds, "measured_seconds"),
            "default_root_dir": expand_if_given(default_root_dir, "default_root_dir"),
        }
        self.described = describe(asked)
        check_settings(asked)
        check_name(name)
        self.callbacks, allocator = split_callbacks(callbacks)
        self.settings = RunSettings.of(asked, allocator)
        check_combinations(self.settings)
        if enable_progress_bar and not any(isinstance(each, ProgressDisplay) for each in self.callbacks):
            self.callbacks.append(ProgressDisplay())
        self.logger = logger
        self.default_root_dir = Path(asked["default_root_dir"])
        self.fabric = make_fabric(accelerator, devices, num_nodes, strategy, self.settings.precision)
        self.recipe: Recipe | None = None
        self.monitored = Monitored()
        self.run_dir = self.default_root_dir
        self.summary: dict[str, Any] = {}
        self.should_stop = False
        self.writes_model = True
        self.command_clock: PhaseClock | None = None
        self.client_place: parts.ClientPlace = parts.clients_here
        self.clock = PhaseClock("set_up")
        self._listeners: list[RoundCallback] = []

    @property
    def allocator(self) -> Allocator | None:
        """The allocator among the callbacks; None where every client trains in fp."""
        return self.settings.allocator

    @property
    def is_global_zero(self) -> bool:
        """Whether this process prints and writes."""
        return self.fabric.is_global_zero

    @with_lightning_names({"model": "module"}, ignored=("weights_only",))
    def fit(
        self,
        module: L.LightningModule,
        datamodule: FederatedDataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Run all rounds, then write the deployed model, the summary and the report.

        Afterwards `module` holds the float32 weights of the deployed round, and the global generators of Python, NumPy
        and torch are seeded anew: the run draws from them, and leaves them where it ended.

        Args:
            module: Any LightningModule with automatic optimization and one optimizer. Copied; its class is left alone.
            datamodule: The clients' data.
            ckpt_path: A run directory, or one of its checkpoints, to go on from, also with more `max_rounds`; "last"
                for the newest run of this module or recipe, or a new one where there is none.

        Raises:
            ConfigurationError: Whatever can be known to be wrong before round 1, with nothing left of a new run; a run
                directory that cannot be written; another process in the run to go on from.
            RunError: No client sends a usable update any more; another process has ended, or does not answer.
            SystemExit: SIGTERM or SIGHUP came, and the script has no handler of its own for it.
        """
        keep_freed_memory()
        clock, self.command_clock = self.command_clock or PhaseClock("set_up"), None
        clock.go_on_with("set_up")
        self.clock = clock
        with told_to_all(self), reproducible(self.settings.threads, self.fabric.device), clock.measuring():
            self._fit(module, datamodule, ckpt_path)

    def _fit(
        self, module: L.LightningModule, datamodule: FederatedDataModule | None, ckpt_path: str | Path | None
    ) -> None:
        """Set up, open the run directory, launch, and run."""
        clock = self.clock
        self.monitored, self.summary, self._listeners = Monitored(), {}, []
        self.run_dir = self.default_root_dir
        datamodule = setup.check_types(module, datamodule)
        settings, device = self.settings, self.fabric.device.type
        described = describe_run(settings, self.described, module, datamodule, device, self.recipe)
        recipe, root = self.recipe or Recipe(type(module).__name__.lower(), text_of(described)), self.default_root_dir
        with ExitStack() as until_the_end:
            start = RunStart.find(settings, recipe, described, module, ckpt_path, root, until_the_end)
            resumed = start.resumed
            job = setup.set_up(settings, self.fabric, module, datamodule, resumes=resumed is not None)
            self.monitored = job.monitored
            check_logger(self.logger)
            opened = start.open(job, root, self.described["name"])

            processes = process_group.launch(self.fabric, settings.process_timeout)
            until_the_end.enter_context(process_group.ends_with_the_others(processes, settings.process_timeout))
            check_same_everywhere(processes, described, job.datamodule, job.sizes.looked_at, resumed)
            self.run_dir = Path(processes.broadcast(str(opened.path)))
            directory = RunDirectory(self.run_dir)
            if parts.keep_state(settings, job) or isinstance(settings.aggregator, AsynchronousAggregator):
                check_shared_folder(processes, directory.path)
            evaluator = parts.evaluator_of(settings, self.fabric, job.template, processes, job.datamodule)
            state = start.state(job, evaluator, self.callbacks, processes)
            if resumed is not None:
                clock.add(resumed.saved["wall_phases"])
            self._listeners = [*self.callbacks, Tracking(self.logger, processes, recipe.name, described, state.records)]
            self._records, self._evaluated = state.records, None
            self._run(module, job, evaluator, processes, directory, state, clock, described, recipe.name)

    def _run(
        self,
        module: L.LightningModule,
        job: setup.Job,
        evaluator: Evaluator,
        processes: Processes,
        directory: RunDirectory,
        state: RunState,
        clock: PhaseClock,
        described: dict[str, Any],
        recipe_name: str,
    ) -> None:
        """The rounds and what follows them, with callbacks told of a failure."""
        settings, fabric = self.settings, self.fabric
        self.should_stop = state.stopped
        try:
            with clock.phase("loggers"):
                self.call("on_fit_start")
            rounds = RoundLoop(
                settings,
                self,
                job,
                self.client_place(settings, fabric, job, evaluator, processes, directory),
                evaluator,
                parts.server_of(settings, job, processes),
                processes,
                directory,
                state,
                clock,
                saved_parts=lambda: {"described": described, "callbacks": self._states_of_callbacks()},
                secure=parts.secure_of(settings, job, processes, directory.path.name),
            )
            failure = None
            with clock.phase("other"):
                try:
                    rounds.run()
                except NoUsableUpdatesError as error:
                    failure = error
            told, writes, tuned = str(failure or ""), self.writes_model, None
            is_here = self.client_place is parts.clients_here
            tuning = parts.fine_tuning_of(settings, fabric, job, evaluator, processes, directory)
            if tuning is not None and failure is None:
                with clock.phase("fine_tuning"):
                    tuned = tuning.tune(state)
            self.summary = processes.from_first(
                lambda: complete(
                    *(settings, job, evaluator, state, directory, recipe_name, clock, writes, told, tuned, is_here)
                )
            )
            if failure is not None:
                raise failure
            build_like(module, job.template, settings.fit_options, job.datamodule)
            load_weights(module, users_view(state.deployed))
            self._fitted_state = state.deployed
            self._fitted, self._fitted_on = module, job.datamodule
            with clock.phase("loggers"):
                self.call("on_fit_end")
            release_data(job.datamodule, "fit")
        except BaseException as error:
            processes.stand_down()
            unwrapped(job.datamodule).on_exception(error)
            self.call("on_exception", error)
            raise

    def call(self, hook: str, *arguments: Any) -> None:
        """Notify every round callback of the running fit, the loggers' last."""
        for callback in self._listeners:
            getattr(callback, hook)(self, *arguments)

    def _states_of_callbacks(self) -> dict[str, Any]:
        return {callback.state_key: callback.state_dict() for callback in self.callbacks}
