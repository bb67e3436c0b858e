"""After the last round: clients train their own model a little further, each for itself alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.federated.client_errors import ClientError, OnClientError, is_clients
from fedhq_lightning.federated.fine_tuning import FineTuning
from fedhq_lightning.federated.lane_fit import LaneFitter
from fedhq_lightning.federated.personal.client_models import ClientModels
from fedhq_lightning.federated.sampling import share_of
from fedhq_lightning.federated.update_checks import is_finite
from fedhq_lightning.run.client_store import PERSONAL, ClientStore
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.notes import noted
from fedhq_lightning.support.process_state import process_state_kept
from fedhq_lightning.support.views import float_view
from fedhq_lightning.types import MODES, ClientId, Mode

_NOT_FINITE = "it came to values that are not finite"


@dataclass(frozen=True)
class Tuned:
    """Who trained, and what it cost.

    Attributes:
        modes: By the client's position, how it trained; without those that did not.
        without: How many did not: they have no batch, or their code raised.
        virtual_seconds: Of the slowest client: download of the deployed model, and the fit.
        downlink_bytes: The model, once to every client.
    """

    modes: Mapping[int, Mode]
    without: int
    virtual_seconds: float
    downlink_bytes: int


class FineTuningRound:
    """Has clients train their own model after the last round; nothing of it leaves them.

    It begins as the model that they evaluate, which is the deployed one with what they have of their own, and trains
    whole, in the lane in which they trained the last time. Each finds a lane as if it were the first, so neither other
    clients nor the number of processes change a bit.

    Args:
        asked: At which learning rate.
        lanes: Fits of the length that was asked for.
        models: Knows each client's model before.
        panel: The clients that evaluate, in the order of all.
        clock: Virtual seconds of fits of that length.
        store: Where the tuned models are kept; every process sees the same.
        fixed_names: What no fit trains, and nobody keeps.
        mode_lr: Factor on every learning rate of a mode.
        processes: Those that share the clients.
        on_error: What happens when a client's code raises: unless that ends the run, it keeps what it had.
    """

    def __init__(
        self,
        asked: FineTuning,
        lanes: LaneFitter,
        models: ClientModels,
        panel: Sequence[ClientId],
        clock: VirtualClock,
        store: ClientStore,
        fixed_names: frozenset[str],
        mode_lr: Mapping[str, float],
        processes: Processes,
        on_error: OnClientError,
    ) -> None:
        self._asked = asked
        self._lanes = lanes
        self._models = models
        self._panel = panel
        self._clock = clock
        self._store = store
        self._fixed_names = fixed_names
        self._mode_lr = mode_lr
        self._processes = processes
        self._on_error = on_error

    def tune(self, state: RunState) -> Tuned:
        """Have them train, and keep what they have then; the same on every process.

        Args:
            state: After the last round.
        """
        self._processes.from_first(lambda: self._store.forget_after(-1))  # of a run that was shorter
        trained, seconds, usual = list[tuple[int, Mode]](), 0.0, usual_mode(state)
        sizes = [float(self._clock.num_examples(each)) for each in self._panel]
        for client_id in share_of(self._processes, self._panel, sizes):
            position = self._clock.position(client_id)
            mode = state.last_modes.get(position, usual)
            time = self._clock.time(client_id, mode)
            if self._is_tuned(client_id, mode, state):
                trained.append((position, mode))
                seconds = max(seconds, time.download_seconds + time.compute_seconds)
        parts = self._processes.gather((trained, seconds))
        modes = dict(sorted((position, mode) for of_one, _ in parts for position, mode in of_one))
        without, num_bytes = len(self._panel) - len(modes), len(modes) * self._clock.download_bytes
        return Tuned(modes, without, max(each[1] for each in parts), num_bytes)

    def _is_tuned(self, client_id: ClientId, mode: Mode, state: RunState) -> bool:
        """Whether it has a model of its own now."""
        where = f"while client {client_id} fine-tuned in {mode}, after the last round"
        try:
            with noted(where), process_state_kept():
                reason = self._reason(client_id, mode, state)
        except BaseException as error:
            if self._on_error == "raise" or not is_clients(error):
                raise
            reason = ClientError.of(error).reason
        if reason:
            rank_zero_warn(f"{where}: {reason}; it keeps the model that it had")
        return not reason

    def _reason(self, client_id: ClientId, mode: Mode, state: RunState) -> str:
        """Why it has none; empty where it has."""
        number = state.deployed_round
        start = float_view(self._models.of(client_id, number, state.deployed))
        scale = self._asked.lr_factor * self._mode_lr.get(mode, 1.0)
        done = self._lanes.fit(mode, client_id, number, start, lambda module: None, scale, purpose="fine-tuning")
        if not done.num_steps:
            return done.reason
        own = {name: each.detach().cpu() for name, each in done.state.items() if name not in self._fixed_names}
        if not is_finite(own):
            return _NOT_FINITE
        self._store.save(self._clock.position(client_id), number, {PERSONAL: own})
        return ""


def usual_mode(state: RunState) -> Mode:
    """How most clients trained in the last round in which any did: for those that have not yet."""
    for record in reversed(state.records):
        if any(record.mode_counts.values()):
            return max(MODES, key=lambda mode: record.mode_counts[mode])
    return "fp"
