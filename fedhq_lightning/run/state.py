"""What a run carries from round to round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.support.views import DEPLOYED
from fedhq_lightning.types import Mode, StateDict


@dataclass
class RunState:
    """Global model, rounds done, best round.

    Attributes:
        global_state: The model that the next round starts from; tensors on the CPU.
        averaged_state: Average of the global models; None without `ema_decay` or `average_from`, or before it begins.
        round: Rounds done.
        best_round: Round with the best monitored value; None before the first evaluation.
        best_value: That value.
        best_state: The model of that round.
        best_rounds: All rounds that were the best when they came: what clients keep of the last before a checkpoint
            stays as long as the checkpoint.
        stopped: Whether a callback ended the run.
        reached: Positions of the clients that have what no round changes, in the order in which they got it; not kept
            where every round changes all.
        usual_norms: Median norms of the last round's updates; None before the first.
        offences: What is held against clients, see `federated.offenders`.
        private_steps: Position of a client to noisy steps on its examples, where these are what privacy hides.
        has_statistics: Whether batch statistics are those of the model that is served; False once a round has moved it.
        last_modes: How each client that evaluates trained the last time, by position.
        in_flight: Clients that train or whose updates are on their way, where no round waits for them; see
            `federated.asynchronous.arrivals`.
        records: One record a round, round 0 first, without clients: those are in `rounds.jsonl`, for they may be many.
    """

    global_state: StateDict
    averaged_state: StateDict | None = None
    round: int = 0
    best_round: int | None = None
    best_value: float | None = None
    best_state: StateDict | None = None
    best_rounds: list[int] = field(default_factory=list)
    stopped: bool = False
    reached: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    usual_norms: tuple[float, float] | None = None
    offences: dict[int, tuple[int, int]] = field(default_factory=dict)
    private_steps: dict[int, int] = field(default_factory=dict)
    has_statistics: bool = False
    last_modes: dict[int, Mode] = field(default_factory=dict)
    in_flight: list[dict[str, Any]] = field(default_factory=list)
    records: list[RoundRecord] = field(default_factory=list)

    @property
    def served(self) -> StateDict:
        """The model that is evaluated and deployed."""
        return self.global_state if self.averaged_state is None else self.averaged_state

    @property
    def deployed(self) -> StateDict:
        """The best round's model; the last one's where nothing was monitored."""
        return self.served if self.best_state is None else self.best_state

    @property
    def deployed_round(self) -> int:
        """After which round it was that."""
        return self.round if self.best_round is None else self.best_round

    @property
    def wall_seconds(self) -> float:
        """Wall seconds of all rounds so far."""
        return self.records[-1].total_wall_seconds if self.records else 0.0

    @property
    def virtual_seconds(self) -> float:
        """Virtual seconds of all rounds so far."""
        return self.records[-1].total_virtual_seconds if self.records else 0.0

    @property
    def epsilon(self) -> float | None:
        """What the rounds so far have spent; None without privacy."""
        return self.records[-1].epsilon if self.records else None

    def reach(self, positions: Sequence[int]) -> list[bool]:
        """Whether each of these clients, by its position, takes part for the first time; the next time it does not."""
        given = torch.tensor(positions, dtype=torch.int64)
        is_new = ~torch.isin(given, self.reached)
        self.reached = torch.cat([self.reached, given[is_new]])
        return is_new.tolist()

    def average(self, decay: float) -> None:
        """Move the averaged model towards the global one; the first global model starts it."""
        if self.averaged_state is None:
            self.averaged_state = dict(self.global_state)
            return
        for name, value in self.global_state.items():
            if value.is_floating_point() and name in self.averaged_state:
                before = self.averaged_state[name]
                moved = before.float().lerp(value.float(), 1 - decay).to(value.dtype)
                # The average of two equal infinities (a mask's) would not be a number.
                value = torch.where(before == value, value, moved)
            self.averaged_state[name] = value

    def take_statistics(self, statistics: StateDict) -> None:
        """Put batch statistics, which belong to the model that is served, into it and into the one that goes on.

        Args:
            statistics: By the names that a run's state has for them, see `support.views`; taken in the module's dtypes.
        """
        statistics = {
            name: value.to(self.global_state[name.removeprefix(DEPLOYED)].dtype) for name, value in statistics.items()
        }
        self.global_state = self.global_state | statistics
        if self.averaged_state is not None:
            self.averaged_state = self.averaged_state | statistics
        self.has_statistics = True

    def is_better(self, value: float | None, monitor_mode: str) -> bool:
        """Whether `value` beats the best so far; NaN and None never do."""
        if value is None or value != value:
            return False
        if self.best_value is None:
            return True
        return value < self.best_value if monitor_mode == "min" else value > self.best_value

    def keep_as_best(self, value: float | None) -> None:
        """This round is the best so far."""
        self.best_round, self.best_value, self.best_state = self.round, value, dict(self.served)
        self.best_rounds.append(self.round)

    def to_checkpoint(self) -> dict[str, Any]:
        """Tensors and plain values; the records stay in `rounds.jsonl`."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "records"}

    @classmethod
    def from_checkpoint(cls, saved: Mapping[str, Any], records: Sequence[RoundRecord]) -> RunState:
        """The state that `to_checkpoint` gave, with the records of its rounds."""
        return cls(**saved, records=list(records))
