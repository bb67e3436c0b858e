"""A module and a callback that log from every hook that may log, and remember what they said."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from .small_federation import NUM_CLASSES, NUM_FEATURES, examples


def _evaluation_hooks(stage: str) -> tuple[str, ...]:
    around = (f"on_{stage}_{when}" for when in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end"))
    return (*around, f"{stage}_step")


TRAINING = (
    *("on_train_start", "on_train_epoch_start", "on_train_batch_start", "training_step", "on_before_zero_grad"),
    *("on_before_backward", "backward", "on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping"),
    *("optimizer_step", "optimizer_zero_grad", "on_train_batch_end", "on_train_epoch_end"),
)
HOOKS = {"train": TRAINING, "validation": _evaluation_hooks("validation"), "test": _evaluation_hooks("test")}
"""By stage, every hook of a module that may log."""

KINDS = ("mean", "sum", "min", "max", "synchronized", "weighted", "metric", "dict", "only_on_last", "rank_zero_only")
_TOLD: dict[str, dict[str, Any]] = {
    **{kind: {"reduce_fx": kind} for kind in ("sum", "min", "max")},
    "synchronized": {"sync_dist": True},
    "weighted": {"batch_size": 3},
    "rank_zero_only": {"rank_zero_only": True},
}
BETWEEN_BATCHES = ("_start", "_epoch_start", "_epoch_end")


def is_between_batches(hook: str) -> bool:
    """Whether a hook belongs to no batch."""
    return "batch" not in hook and hook.endswith(BETWEEN_BATCHES)


class Note(NamedTuple):
    """One value that was logged, under every kind's name: `WHO/HOOK/KIND`.

    Attributes:
        who: "module" or "callback".
        hook: Where.
        epoch: In training.
        value: Raw.
        size: Examples in the batch; 0 between batches.
        loader: Its number.
    """

    who: str
    hook: str
    epoch: int
    value: float
    size: int
    loader: int


class LogsEverywhere(pl.LightningModule):
    """Logs another value at every call of every hook, under a name for each way of reducing it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.net = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        hooks = [f"{who}_{hook}" for who in ("module", "callback") for stage in HOOKS.values() for hook in stage]
        self.metrics = nn.ModuleDict({name: MeanMetric() for name in hooks})
        self.notes: list[Note] = []
        self.size = self.loader = self.calls = 0

    def forward(self, inputs: Tensor) -> Any:
        return self.net(inputs)

    def say(self, who: str, hook: str) -> None:
        """Log one value in every way."""
        trainer, self.calls = self.trainer, self.calls + 1
        rank = trainer.global_rank
        value = float(3 + 5 * rank + self.calls * 7 % 13)
        if not trainer.sanity_checking:
            size, loader = (0, 0) if is_between_batches(hook) else (self.size, self.loader)
            self.notes.append(Note(who, hook, trainer.current_epoch, value, size, loader))
        levels = {} if is_between_batches(hook) else {"on_step": False, "on_epoch": True}
        for kind in KINDS:
            name = f"{who}/{hook}/{kind}"
            if kind == "dict":
                self.log_dict({name: value}, **levels)
            elif kind == "metric":
                metric = self.metrics[f"{who}_{hook}"]
                metric.update(value)
                self.log(name, metric, **levels)
            elif (kind == "only_on_last" and rank < trainer.world_size - 1) or (kind == "rank_zero_only" and rank):
                continue
            else:
                self.log(name, torch.tensor(value), **levels, **_TOLD.get(kind, {}))
        if hook == "on_train_batch_end":
            self.log(f"{who}/step_alone", value)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.size, self.loader = len(batch[0]), dataloader_idx
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.say("module", "training_step")
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.say("module", "validation_step")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.say("module", "test_step")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def _saying(hook: str) -> Callable[..., Any]:
    def run(self: LogsEverywhere, *arguments: Any, **named: Any) -> Any:
        self.say("module", hook)
        return getattr(pl.LightningModule, hook)(self, *arguments, **named)

    return run


for _hook in [hook for stage in HOOKS.values() for hook in stage if hook not in vars(LogsEverywhere)]:
    setattr(LogsEverywhere, _hook, _saying(_hook))


class CallbackLogsEverywhere(pl.Callback):
    """Logs with the module from every hook that callbacks have."""


def _saying_too(hook: str) -> Callable[..., Any]:
    def run(self: pl.Callback, trainer: pl.Trainer, pl_module: LogsEverywhere, *arguments: Any) -> None:
        pl_module.say("callback", hook)

    return run


CALLBACK_HOOKS = {stage: [hook for hook in hooks if hasattr(pl.Callback, hook)] for stage, hooks in HOOKS.items()}
for _hook in [hook for hooks in CALLBACK_HOOKS.values() for hook in hooks]:
    setattr(CallbackLogsEverywhere, _hook, _saying_too(_hook))


def loaders(sizes: Iterable[int], seed: int) -> list[DataLoader[Any]]:
    """Loaders of batches of 8, the last of each a partial one."""
    return [DataLoader(examples(size, seed + number), batch_size=8) for number, size in enumerate(sizes)]
