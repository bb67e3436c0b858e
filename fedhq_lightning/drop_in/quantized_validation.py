"""Metrics of the converted copy of a module, on the validation or test batches of its Trainer.

The copy runs the module's own steps and hooks, and logs through Lightning's own `self.log`, into a collection beside
the Trainer's. It sees the Trainer through a view that keeps it from the user's loggers.
"""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from fedhq_lightning.drop_in.copies import ForwardRecorder, as_float, converted_copy, copy_of_batch
from fedhq_lightning.drop_in.deployed_statistics import DeployedStatistics
from fedhq_lightning.drop_in.lane_swap import has_lazy_layers
from fedhq_lightning.drop_in.trainer_parts import AveragesResults
from fedhq_lightning.drop_in.trainer_view import TrainerView
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.memory_of_evaluation import Attributes, changed, plain_attributes, recall
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.support.lightnings import AnyModule, lightnings_own
from fedhq_lightning.types import StateDict

Stage = Literal["validation", "test"]

PREFIX = "quantized/"


class QuantizedEvaluation:
    """One pass of the converted copy over validation or test batches.

    Args:
        trainer: Its loaders, device and processes are the pass's.
        pl_module: Converted as it is now; it stays as it is.
        scheme: The deployment grid.
        stage: Whose steps and hooks are run.
        memory: What an earlier pass left on its copy, such as a best value so far.
        statistics: Batch statistics of the copy, where it has others than the module.

    Raises:
        ConfigurationError: See `converted_copy`, or a step that takes Lightning's `dataloader_iter`.

    Attributes:
        shown: Names that the module wants in the progress bar.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        scheme: QuantScheme,
        stage: Stage,
        memory: Attributes,
        statistics: StateDict,
    ) -> None:
        self._module = converted_copy(pl_module, scheme, statistics)
        self._before = plain_attributes(self._module)
        recall(self._module, memory)
        self._step = getattr(self._module, f"{stage}_step")
        if is_param_in_hook_signature(self._step, "dataloader_iter", explicit=True):
            raise ConfigurationError(
                f"{stage}_step takes dataloader_iter, from which one model alone can read; let it take batch, batch_idx"
            )
        self._takes_batch_idx = is_param_in_hook_signature(self._step, "batch_idx", min_args=2)
        self._stage = stage
        self._trainer = trainer
        self._view = TrainerView(trainer, self._module)
        self._to_float = any(value.is_floating_point() and value.dtype != torch.float32
                             for value in pl_module.parameters())  # fmt: skip
        self._loader_idx: int | None = None
        self._values: dict[str, float] = {}
        self._recorder = ForwardRecorder(self._module)
        self.shown: set[str] = set()
        for each in self._module.modules():
            if isinstance(each, AnyModule):
                each._trainer = self._view  # type: ignore[assignment]  # a stand-in, not a subclass
        for hook in ("start", "epoch_start"):
            self._call(f"on_{stage}_{hook}")

    @property
    def example_args(self) -> tuple[Any, ...] | None:
        """The first positional arguments of the module's `forward`, on the CPU."""
        return self._recorder.arguments

    @property
    def memory(self) -> Attributes:
        """What the pass left on its copy, for the next."""
        return changed(plain_attributes(self._module), self._before)

    def step(self, batch: Any, batch_idx: int, dataloader_idx: int | None) -> None:
        """Run the module's step on one batch.

        Args:
            batch: On the module's device.
            batch_idx: Counted within its loader.
            dataloader_idx: None where there is one loader.
        """
        if dataloader_idx != self._loader_idx:
            self._collect()
            self._loader_idx = dataloader_idx
        batch = as_float(batch) if self._to_float else batch
        results = self._view._results
        results.batch, results.batch_size, results.dataloader_idx = batch, None, dataloader_idx
        indices = (batch_idx,) if dataloader_idx is None else (batch_idx, dataloader_idx)
        self._call(f"on_{self._stage}_batch_start", batch, *indices)
        output = self._call(f"{self._stage}_step", batch, *(indices if self._takes_batch_idx else indices[1:]))
        self._call(f"on_{self._stage}_batch_end", output, batch, *indices)
        results.batch = results.batch_size = None

    def finish(self) -> dict[str, float]:
        """End the pass.

        Returns:
            `quantized/NAME` to the epoch's value of everything that the module logged, in the order of logging. On
            several processes the mean over those that logged it; the same on every process.
        """
        self._collect()
        self._loader_idx = None
        self._view._results.dataloader_idx = None
        self._call(f"on_{self._stage}_epoch_end")
        self._collect()
        self._view._results.reset()  # metric objects too, as Lightning's own loop does
        return _mean_over_processes(self._values)

    def _collect(self) -> None:
        if isinstance(self._trainer.strategy, AveragesResults):
            self._trainer.strategy.average(self._view._results)
        metrics = self._view._results.metrics(on_step=False)
        for name, value in metrics["callback"].items():
            if value.numel() == 1:
                self._values[f"{PREFIX}{name}"] = float(value)
        self.shown |= {f"{PREFIX}{name}" for name in metrics["pbar"]}

    def _call(self, hook: str, *arguments: Any) -> Any:
        module = self._module
        module._current_fx_name = hook
        # Whatever the copy draws, the module that is trained draws what it would have drawn without it.
        with torch.no_grad(), isolate_rng(include_cuda=module.device.type == "cuda"):
            output = getattr(module, hook)(*arguments)
        module._current_fx_name = None
        return output


class QuantizedValidation:
    """`QuantizedEvaluation` from the hooks of a callback: batch by batch beside Lightning's own loop.

    Weights are those that the module has at the first batch, when every callback that swaps weights for an evaluation
    has done so. The data are read once.

    Args:
        scheme: The deployment grid.
        statistics: Knows batch statistics of the deployed model.

    Attributes:
        example_args: First arguments of the module's `forward` in the last pass that called it, on the CPU.
    """

    def __init__(self, scheme: QuantScheme, statistics: DeployedStatistics) -> None:
        self.scheme = scheme
        self._statistics = statistics
        self.example_args: tuple[Any, ...] | None = None
        self._evaluation: QuantizedEvaluation | None = None
        self._batch: Any = None
        self._memory: Attributes = {}

    def start(self) -> None:
        """Forget an earlier pass, whether it ended or not; in the callback's `on_..._start`."""
        self._evaluation = self._batch = None

    def batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage, batch: Any) -> None:
        """Convert the module at the first batch, and keep a copy of the batch; in `on_..._batch_start`.

        A pass whose first batch builds the module's lazy layers, as that of the sanity check, has no metrics.
        """
        if self._evaluation is None and not has_lazy_layers(pl_module):
            own = self._statistics.of(pl_module)
            self._evaluation = QuantizedEvaluation(trainer, pl_module, self.scheme, stage, self._memory, own)
        self._batch = copy_of_batch(batch)

    def batch_end(self, trainer: pl.Trainer, batch_idx: int) -> None:
        """Evaluate the batch, once the fp model has shown that it can; in `on_..._batch_end`."""
        if self._evaluation is not None and trainer._results is not None:
            # The hook's own dataloader_idx is 0 for one loader and for the first of several.
            self._evaluation.step(self._batch, batch_idx, trainer._results.dataloader_idx)
        self._batch = None

    def epoch_end(self, pl_module: pl.LightningModule) -> dict[str, float]:
        """Log what was found with the module; in the callback's `on_..._epoch_end`.

        Returns:
            See `QuantizedEvaluation.finish`.
        """
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is None:  # a loader without batches
            return {}
        values = evaluation.finish()
        self._memory = evaluation.memory
        for name, value in values.items():
            # Not the module's own `log`, which may change names.
            shown = name in evaluation.shown
            lightnings_own(pl_module).log(
                pl_module, name, value, prog_bar=shown, sync_dist=True, add_dataloader_idx=False
            )
        self.example_args = evaluation.example_args or self.example_args
        return values


def _mean_over_processes(values: dict[str, float]) -> dict[str, float]:
    """The mean of every name over the processes that have it, summed in the order of ranks."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return values
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, values)
    merged: dict[str, list[float]] = {}
    for part in gathered:
        for name, value in part.items():
            merged.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in merged.items()}
