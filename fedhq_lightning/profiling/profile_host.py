"""What the lanes of a recipe take on this host: its whole training step, and each quantized layer by each kernel.

Nothing measured here decides anything in a run unless it is written into the recipe: the static rule of
`quantize.kernel_choice` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.devices.roofline import Precision
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import setup
from fedhq_lightning.federated.algorithms.aggregator import ClientStart
from fedhq_lightning.federated.clients import client_to_probe
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.profiling.host_device import measure_host
from fedhq_lightning.profiling.host_prediction import predict_steps
from fedhq_lightning.profiling.host_profile import HostProfile, LayerKernels, LayerProfile, as_patterns, disagreements
from fedhq_lightning.profiling.timing import Clock, TimedBatches, Timing, Work, time_in_turns
from fedhq_lightning.quantize import LaneOptions, LayerScheme, prepare
from fedhq_lightning.quantize.convolution import output_positions
from fedhq_lightning.quantize.kernel_choice import integers_pay_in_convolution, integers_pay_in_linear
from fedhq_lightning.quantize.qat_layers import has_integer_forward
from fedhq_lightning.support.arithmetic import device_name, reproducible
from fedhq_lightning.support.collectives import lightning_quiet
from fedhq_lightning.support.seeds import derive_seed, seed_generators
from fedhq_lightning.support.views import is_range
from fedhq_lightning.types import Mode

_MODES: tuple[Mode, ...] = ("ptq", "qat")
_LAYER_BLOCK_SECONDS = 0.01
_STEP_BLOCK_SECONDS = 0.1
_ROUNDS = 11
_FEWEST_ROUNDS = 3
_LONG_STEP_SECONDS = 1.0


def profile_host(
    settings: RunSettings,
    fabric: Fabric,
    module: L.LightningModule,
    datamodule: FederatedDataModule,
    on_progress: Callable[[str], None] = lambda text: None,
) -> HostProfile:
    """Measure every lane on a real batch, with the run's threads, device and precision, on one process.

    The batch is the first one of the client with the most examples, the first of equals: a full one.

    Args:
        settings: Of the run that would be started; nothing is run or written.
        fabric: Where modules run, and in which precision.
        module: The user's; copied.
        datamodule: Gives the batch.
        on_progress: Told what is measured next, before each block; may raise to end it all.

    Raises:
        ConfigurationError: No scheme, or whatever `FederatedTrainer.fit` refuses before round 1.
    """
    if settings.scheme is None:
        raise ConfigurationError(
            "scheme is not set, so there are no PTQ and QAT lanes to measure; give one: --trainer.scheme=w4a8"
        )
    with reproducible(settings.threads, fabric.device), lightning_quiet():
        return _Bench(settings, fabric, setup.set_up(settings, fabric, module, datamodule)).profile(on_progress)


def rule_kernel(mode: Mode, layer: nn.Module, grid: LayerScheme, inputs: Sequence[Tensor]) -> str:
    """The kernel that `auto` stands for in a plain layer.

    Args:
        mode: `ptq` or `qat`.
        layer: `nn.Linear`, `nn.Conv1d` or `nn.Conv2d`.
        grid: Its grid.
        inputs: One a call.

    Returns:
        See `LayerProfile.rule`.
    """
    has_integers = has_integer_forward(layer, grid) if mode == "qat" else getattr(layer, "groups", 1) == 1
    fallback = "auto" if mode == "qat" else "fp"
    kernels = {"int8" if has_integers and _integers_pay(layer, x) else fallback for x in inputs}
    return kernels.pop() if len(kernels) == 1 else "auto"


def kernels_that_differ(mode: Mode, layer: nn.Module, grid: LayerScheme, rule: str) -> tuple[str, ...]:
    """The kernels worth measuring in a plain layer, in a fixed order; arguments as for `rule_kernel`."""
    if mode == "ptq":
        kernels = {"fp", rule} | ({"int8"} if getattr(layer, "groups", 1) == 1 else set())
    else:
        kernels = {"fake", rule} | ({"int8"} if has_integer_forward(layer, grid) else set())
    return tuple(kernel for kernel in ("int8", "auto", "fp", "fake") if kernel in kernels)


def _integers_pay(layer: nn.Module, x: Tensor) -> bool:
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        x = x.unsqueeze(0) if x.dim() == 1 + len(layer.kernel_size) else x
        return integers_pay_in_convolution(x, layer.weight, output_positions(layer, x))
    assert isinstance(layer, nn.Linear)
    return integers_pay_in_linear(x, layer.weight)


@dataclass
class _Call:
    """One call of a layer in the captured step; no gradient where none flowed back."""

    x: Tensor
    needs_gradient: bool
    gradient: Tensor | None = None

    def keep_gradient(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach().clone()


class _Bench:
    """One recipe, ready to be measured."""

    def __init__(self, settings: RunSettings, fabric: Fabric, job: setup.Job) -> None:
        assert settings.scheme is not None
        self._settings = settings
        self._device = fabric.device
        self._autocast = fabric.autocast
        self._lanes = settings.lanes
        self._scheme = settings.scheme
        self._datamodule = job.datamodule
        self._template = copy.deepcopy(job.template).to(self._device)
        for name, value in self._template.named_buffers():
            if is_range(name):
                # Any will do; without one a layer would be timed with dynamic ranges.
                value.copy_(torch.tensor([-1.0, 1.0]))
        self._grids = settings.scheme.for_layers(self._template)
        self._batch_size = job.probe.batch_size
        self._costs = job.probe.costs
        self._beside = job.beside
        self._precision: Precision = "bf16" if settings.precision == "bf16-mixed" else "fp32"
        self._client_id = client_to_probe(job.datamodule, job.sizes.looked_at)
        self._seed = partial(seed_generators, derive_seed(settings.seed, "profile"))
        self._seed()
        self._batch = next(iter(job.datamodule.train_dataloader(self._client_id)))
        # One step is what one call of optimizer.step() takes, however many batches lie before it.
        self._options = replace(settings.fit_options, local_epochs=1, local_steps=None)
        self._warm_up_seconds = 0.0

    def profile(self, on_progress: Callable[[str], None]) -> HostProfile:
        calls = self._capture()
        called = [name for name in self._grids if calls[name]]
        layers, shared = [], self._prepared_by_kernel()
        for position, name in enumerate(called, start=1):
            show = partial(on_progress, f"layer {position} of {len(called)}: {name}")
            layers.append(self._layer(name, calls.pop(name), shared, show))
        del shared
        lanes = self._lanes_to_measure(disagreements(layers))
        steps = self._steps(lanes, partial(on_progress, "whole steps"))
        host = measure_host(self._device, partial(on_progress, "this host"))
        predicted = predict_steps(host, self._template, self._grids, self._costs, layers, steps, lanes, self._precision)
        return HostProfile(
            device=device_name(self._device),
            threads=self._settings.threads,
            scheme=str(self._scheme),
            client_id=self._client_id,
            batch_size=self._batch_size,
            layers=tuple(layers),
            not_called=tuple(name for name in self._grids if name not in called),
            steps=steps,
            warm_up_seconds=self._warm_up_seconds,
            decided={} if self._lanes.qat_kernel == "auto" else {"qat": self._lanes.qat_kernel},
            predicted=predicted,
            host=host.profile,
        )

    def _trainer_of(self, module: L.LightningModule) -> ClientTrainer:
        return ClientTrainer(module, self._options, self._device, self._autocast, self._datamodule)

    def _capture(self) -> dict[str, list[_Call]]:
        """Inputs and output gradients of every quantized layer in one step in fp."""
        module = copy.deepcopy(self._template)
        calls: dict[str, list[_Call]] = {name: [] for name in self._grids}

        def remember(name: str, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            if x.numel() == 0:
                return
            call = _Call(x.detach().clone(), x.requires_grad)
            calls[name].append(call)
            if output.requires_grad:
                output.register_hook(call.keep_gradient)  # type: ignore[no-untyped-call]  # untyped in torch

        for name in self._grids:
            module.get_submodule(name).register_forward_hook(partial(remember, name), with_kwargs=True)
        self._trainer_of(module).fit([self._batch])
        return calls

    def _prepared_by_kernel(self) -> dict[tuple[Mode, str], nn.Module]:
        """The module with one kernel in all its layers; all of them share their parameters, which nobody changes."""
        prepared: dict[tuple[Mode, str], nn.Module] = {}
        kernels: tuple[tuple[Mode, str], ...]
        kernels = (("ptq", "int8"), ("ptq", "auto"), ("ptq", "fp"), ("qat", "int8"), ("qat", "auto"), ("qat", "fake"))
        for mode, kernel in kernels:
            module = copy.deepcopy(self._template, {id(each): each for each in self._template.parameters()})
            options = replace(self._lanes, layer_kernels={mode: {"*": kernel}})
            prepared[mode, kernel] = prepare(module, mode, self._scheme, options)
        return prepared

    def _layer(
        self,
        name: str,
        calls: list[_Call],
        prepared: Mapping[tuple[Mode, str], nn.Module],
        on_block: Callable[[], None],
    ) -> LayerProfile:
        plain, grid = self._template.get_submodule(name), self._grids[name]
        inputs = [call.x for call in calls]
        rule: dict[str, str] = {mode: rule_kernel(mode, plain, grid, inputs) for mode in _MODES}
        works: dict[tuple[str, str], Work] = {
            (mode, kernel): self._layer_work(prepared[mode, kernel].get_submodule(name), calls)
            for mode in _MODES
            for kernel in kernels_that_differ(mode, plain, grid, rule[mode])
        }
        self._seed()
        timings = time_in_turns(works, _LAYER_BLOCK_SECONDS, _ROUNDS, on_block)
        self._warm_up_seconds += sum(timing.warm_up_seconds for timing in timings.values())
        return LayerProfile(name, tuple(tuple(x.shape) for x in inputs), rule, timings)

    def _layer_work(self, layer: nn.Module, calls: Sequence[_Call]) -> Work:
        parameters = [each for each in layer.parameters() if each.requires_grad]
        inputs = [(call.x.detach().requires_grad_(call.needs_gradient), call.gradient) for call in calls]

        def once() -> None:
            for x, gradient in inputs:
                with self._autocast():
                    output = layer(x)
                if gradient is not None:
                    wanted = [x, *parameters] if x.requires_grad else parameters
                    torch.autograd.grad(output, wanted, gradient.to(output.dtype), allow_unused=True)

        def work(repeats: int) -> float:
            clock = Clock(self._device)
            for _ in range(repeats):
                once()
            return clock.seconds() / repeats

        return work

    def _lanes_to_measure(self, measured: LayerKernels) -> dict[str, tuple[Mode, LaneOptions]]:
        """Lanes by their names in `HostProfile.steps`."""
        rule = replace(self._lanes, qat_kernel="auto", layer_kernels=None)
        lanes: dict[str, tuple[Mode, LaneOptions]] = {
            "fp": ("fp", rule),
            "ptq": ("ptq", rule),
            "qat": ("qat", rule),
            "qat fake": ("qat", replace(rule, qat_kernel="fake")),
        }
        for mode in _MODES:
            own = replace(rule, layer_kernels={mode: (self._lanes.layer_kernels or {}).get(mode, {})})
            if mode == "qat":
                own = replace(own, qat_kernel=self._lanes.qat_kernel)
            if (own.layer_kernels or {})[mode] or own.qat_kernel != "auto":
                lanes[f"{mode} recipe"] = mode, own
            if mode in measured:
                lanes[f"{mode} measured"] = mode, replace(rule, layer_kernels={mode: as_patterns(measured[mode])})
        return lanes

    def _steps(self, lanes: Mapping[str, tuple[Mode, LaneOptions]], on_block: Callable[[], None]) -> dict[str, Timing]:
        """The time of each lane's step."""
        works = {lane: self._step_work(mode, options) for lane, (mode, options) in lanes.items()}
        rounds = _ROUNDS if works["fp"](1) < _LONG_STEP_SECONDS else _FEWEST_ROUNDS
        timings = time_in_turns(works, _STEP_BLOCK_SECONDS, rounds, on_block)
        self._warm_up_seconds += sum(timing.warm_up_seconds for timing in timings.values())
        return timings

    def _step_work(self, mode: Mode, options: LaneOptions) -> Work:
        module = prepare(copy.deepcopy(self._template), mode, self._scheme, options)
        trainer = self._trainer_of(module)

        def work(repeats: int) -> float:
            # From the same weights each time: a batch that is trained on for minutes ends in other numbers.
            module.load_state_dict(self._template.state_dict())
            self._seed()
            batches = TimedBatches(self._batch, repeats * self._options.accumulate_grad_batches, self._device)
            term = self._settings.aggregator.client_term(ClientStart(module, self._beside))
            num_steps, _ = trainer.fit(batches, 1.0, None if term is None else term.before_step)  # type: ignore[arg-type]  # has what fit asks of a loader
            if not num_steps:
                raise ConfigurationError(f"{type(module).__name__}.on_train_batch_start leaves no step to measure")
            return batches.seconds / num_steps

        return work
