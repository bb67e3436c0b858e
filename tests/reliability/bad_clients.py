"""A module whose clients misbehave, each in a way of its own, once armed; and what is promised for every way."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.federated.callback import RoundCallback, RoundControl
from fedhq_lightning.types import ClientId, Plan

from ..small_federation import NUM_CLASSES, NUM_FEATURES, SmallModule, examples

Deed = Callable[["BadModule"], Any]


class Bad:
    """Which clients misbehave how; nobody does before the first round, when the module is tried on a batch."""

    kinds: Mapping[ClientId, str] = {}  # set by tests, one at a time
    armed = False

    @classmethod
    def kind_of(cls, client_id: ClientId) -> str:
        return cls.kinds.get(client_id, "") if cls.armed else ""


class Arm(RoundCallback):
    """Lets them begin with round 1."""

    @override
    def on_round_start(self, trainer: RoundControl, round_number: int, plan: Plan) -> None:
        Bad.armed = True


class _Items(Dataset[Any]):
    def __init__(self, client_id: int, size: int) -> None:
        self.inputs, self.labels = examples(size, 1 + client_id).tensors
        self.client_id = client_id

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        if Bad.kind_of(self.client_id) == "dataset raises":
            raise RuntimeError("the client's disk broke")
        return self.inputs[index], self.labels[index], self.client_id


class _Empty(DataLoader[Any]):
    """Says that it has batches, and gives none."""

    @override
    def __iter__(self) -> Any:
        return iter(())


class BadData(FederatedDataModule):
    """Clients of some examples each."""

    def __init__(self, client_ids: Sequence[int], size: int = 24) -> None:
        super().__init__()
        self.ids, self.size = list(client_ids), size

    @property
    @override
    def client_ids(self) -> Sequence[ClientId]:
        return self.ids

    @override
    def num_examples(self, client_id: ClientId) -> int:
        claimed = {"claims 2^29": 2**29, "claims -5": -5, "claims 0": 0}
        return claimed.get(Bad.kind_of(client_id), self.size)

    @override
    def train_dataloader(self, client_id: ClientId) -> Any:
        kind, items = Bad.kind_of(client_id), _Items(int(client_id), self.size)
        if kind == "loader raises":
            raise OSError("the client's data are gone")
        if kind == "loader without batches":
            return DataLoader[Any]([], 8)
        return (_Empty if kind == "loader lies" else DataLoader)(items, 8, shuffle=True)

    @override
    def val_dataloader(self) -> Any:
        return DataLoader(examples(50, 100), 32)


def _raising(error: BaseException) -> Deed:
    def deed(module: BadModule) -> Any:
        raise error

    return deed


def _filling(name: str, value: float) -> Deed:
    def deed(module: BadModule) -> None:
        with torch.no_grad():
            module.state_dict(keep_vars=True)[name].view(-1)[0] = value

    return deed


def _all(value: float) -> Deed:
    def deed(module: BadModule) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(value)

    return deed


def _setting(path: str, make: Callable[[Any], Any]) -> Deed:
    """Replaces `part.attribute` by what `make` makes of it."""

    def deed(module: BadModule) -> None:
        part, _, name = path.rpartition(".")
        owner = module.get_submodule(part)
        setattr(owner, name, make(getattr(owner, name)))

    return deed


def _data(path: str, make: Callable[[Tensor], Tensor]) -> Deed:
    def deed(module: BadModule) -> None:
        parameter = module.get_parameter(path)
        parameter.data = make(parameter.data)

    return deed


def _losing(loss: Callable[[Tensor], Any]) -> Callable[[BadModule, Tensor], Any]:
    return lambda module, given: loss(given)


def _flip(module: BadModule) -> None:
    """The opposite of what it learned, a hundred times."""
    with torch.no_grad():
        for parameter, start in zip(module.parameters(), module.start, strict=True):
            parameter.copy_(start - 100 * (parameter - start))


def _log(module: BadModule) -> None:
    module.log("x" * 1000, 1.0)
    module.log("train_loss", math.nan)


def _freeze(module: BadModule) -> None:
    for parameter in module.net.parameters():
        parameter.requires_grad_(False)


def _hook(module: BadModule) -> None:
    module.net.register_forward_hook(lambda part, given, output: output * 0)


IN_STEP: dict[str, Deed] = {
    "step raises": _raising(RuntimeError("boom")),
    "out of memory": _raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    "MemoryError": _raising(MemoryError()),
    "sys.exit": lambda module: sys.exit(3),
    "StopIteration": _raising(StopIteration()),
    "logs": _log,
    "default dtype": lambda module: torch.set_default_dtype(torch.float64),
    "gradients off": lambda module: torch.set_grad_enabled(False),
    "threads": lambda module: torch.set_num_threads(2),
    "directory": lambda module: os.chdir("/"),
    "frozen": _freeze,
    "another forward": lambda module: setattr(
        module, "forward", lambda inputs: torch.zeros(len(inputs), 3) + module.zero
    ),
    "hook": _hook,
    "evaluation mode": lambda module: module.eval(),
    "layer swapped": lambda module: setattr(module, "head", nn.Linear(8, NUM_CLASSES)),
}
"""Done in the client's first step, and in each later one."""
LOSSES: dict[str, Callable[[Tensor], Any]] = {
    "NaN loss": lambda loss: loss * math.nan,
    "loss is text": lambda loss: "hello",
    "loss is a vector": lambda loss: torch.stack([loss, loss]),
    "no loss": lambda loss: None,
}
AT_END: dict[str, Deed] = {
    "NaN weights": _all(math.nan),
    "one NaN": _filling("net.weight", math.nan),
    "infinite bias": _filling("head.bias", math.inf),
    "weights of 1e30": _all(1e30),
    "weights of 8e9": _all(8e9),
    "weights of 1e4": _all(1e4),
    "sign flipped, times 100": _flip,
    "NaN buffer": _filling("norm.running_mean", math.nan),
    "negative variance": lambda module: module.norm.running_var.fill_(-1.0),
    "float64 buffer": _setting("norm.running_mean", lambda value: value.double()),
    "integer buffer": _setting("norm.running_mean", lambda value: value.long()),
    "half": lambda module: module.half(),
    "larger weight": _data("net.weight", lambda value: torch.zeros(9, NUM_FEATURES)),
    "transposed weight": _data("head.weight", lambda value: value.t().contiguous()),
    "another parameter": lambda module: setattr(module, "more", nn.Parameter(torch.ones(3))),
    "another buffer": lambda module: module.register_buffer("more", torch.ones(3)),
    "layer gone": lambda module: delattr(module, "head"),
    "counter": lambda module: module.norm.num_batches_tracked.fill_(-7),
}
"""Done when its fit has ended."""
OF_DATA = (
    "dataset raises",
    "loader raises",
    "loader without batches",
    "loader lies",
    "claims 2^29",
    "claims -5",
    "claims 0",
)

CONTAINED = (
    "logs",
    "default dtype",
    "gradients off",
    "threads",
    "directory",
    "frozen",
    "another forward",
    "hook",
    "evaluation mode",
    "layer swapped",
    "float64 buffer",
    "another parameter",
    "another buffer",
    "counter",
    "negative variance",
    "NaN buffer",
    "integer buffer",
    "claims 2^29",
    "claims -5",
    "claims 0",
    "half",
)
"""Whose update may count, for what arrives is an update like others; but nobody else's changes."""
ALL_KINDS = (*IN_STEP, *LOSSES, *AT_END, *OF_DATA)
LEFT_OUT = tuple(kind for kind in ALL_KINDS if kind not in CONTAINED)
"""Whose update never counts: the model is that of a run without the client."""


class BadModule(SmallModule):
    """Two linear layers and a BatchNorm between."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.net = nn.Linear(NUM_FEATURES, 8)
            self.norm = nn.BatchNorm1d(8)
            self.head = nn.Linear(8, NUM_CLASSES)
        self.zero = nn.Parameter(torch.zeros(()))
        self.client_id: int | None = None
        self.start: list[Tensor] = []

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.head(torch.relu(self.norm(self.net(inputs)))) + self.zero
        return output

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, labels, client_ids = batch
        self.client_id = int(client_ids[0])
        kind = Bad.kind_of(self.client_id)
        if kind in IN_STEP:
            IN_STEP[kind](self)
        loss = nn.functional.cross_entropy(self(inputs), labels)
        self.log("train_loss", loss)
        return LOSSES[kind](loss) if kind in LOSSES else loss

    def on_train_start(self) -> None:
        self.start = [parameter.detach().clone() for parameter in self.parameters()]

    def on_train_end(self) -> None:
        kind = "" if self.client_id is None else Bad.kind_of(self.client_id)
        if kind in AT_END:
            AT_END[kind](self)
