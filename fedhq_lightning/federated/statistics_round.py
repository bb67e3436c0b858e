"""BatchNorm statistics of the global model, taken anew by clients: of its float32 and of its deployed view."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.federated.client_errors import ClientError, OnClientError, is_clients
from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.federated.payload import Header, encode
from fedhq_lightning.federated.sampling import share_of
from fedhq_lightning.local.batch_statistics import TooFewValuesError, batch_moments
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.local.evaluation import Evaluator
from fedhq_lightning.local.pristine import Pristine
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.notes import noted
from fedhq_lightning.support.process_state import process_state_kept
from fedhq_lightning.support.seeds import generators_kept
from fedhq_lightning.support.views import DEPLOYED, as_deployed
from fedhq_lightning.types import ClientId, FitOptions, Mode, StateDict

MEAN, VARIANCE = "running_mean", "running_var"
_LIMIT = 2.0**15
"""Squares of differences stay in the range of `ExactMean`."""


@dataclass(frozen=True)
class Retaken:
    """Statistics taken anew, and what that cost.

    Attributes:
        statistics: By the names that a run's state has for them, see `support.views`; empty where no client could.
        virtual_seconds: Of the slowest client: download, a forward pass in each view, upload.
        uplink_bytes: All clients' payloads.
        downlink_bytes: The model, once to every client.
    """

    statistics: StateDict
    virtual_seconds: float = 0.0
    uplink_bytes: int = 0
    downlink_bytes: int = 0


class StatisticsRound:
    """Takes the statistics of global models anew.

    The model goes to clients, each runs one batch of its own data through the float32 and the deployed view, every
    layer normalizing by what it gets, and sends mean and variance per channel. Of those of all clients, weighted by
    examples, the server makes the mean and the variance of the whole: the mean variance, and the variance of the means.
    Both are exact sums, so neither order nor processes change a bit.

    Args:
        layers: The BatchNorm layers by their first names, with all names of each; see `tracked_layers`.
        evaluator: Makes the views.
        options: Only to build a `ClientTrainer`.
        datamodule: Gives each client's batch.
        clock: Virtual seconds.
        processes: Those that share the clients.
        on_error: What happens when a client's code raises: unless that ends the run, it goes on without its statistics.
        own: What of the model is a client's own after a round, by name: it goes through its own model.
    """

    def __init__(
        self,
        layers: Mapping[str, Sequence[str]],
        evaluator: Evaluator,
        options: FitOptions,
        datamodule: FederatedDataModule,
        clock: VirtualClock,
        processes: Processes,
        on_error: OnClientError = "raise",
        own: Callable[[ClientId, int], StateDict] | None = None,
    ) -> None:
        self._layers = layers
        self._evaluator = evaluator
        self._options = options
        self._datamodule = datamodule
        self._clock = clock
        self._processes = processes
        self._on_error = on_error
        self._own = own
        self._warned = False

    def retake(self, round_number: int, state: StateDict, client_ids: Sequence[ClientId]) -> Retaken:
        """Statistics of one global model, the same on every process.

        Args:
            round_number: For payloads and messages.
            state: The model.
            client_ids: Who takes them, in one order on all processes; one whose batch is too small is passed over.
        """
        received, weights = dict[ClientId, StateDict](), dict[ClientId, int]()
        seconds, sent = 0.0, 0
        mine = share_of(self._processes, client_ids, [1.0] * len(client_ids))
        for client_id, moments in self._told(mine, round_number, state):
            received[client_id], weights[client_id] = moments, self._clock.num_examples(client_id)
            num_bytes = len(encode(moments, {}, Header("statistics", round_number, client_id)))
            sent += num_bytes
            seconds = max(seconds, self._clock.statistics_seconds(client_id, num_bytes, self._modes))
        statistics = pooled(received, weights, self._processes)
        parts = self._processes.gather((seconds, sent, len(received)))
        if not statistics and client_ids:
            self._warn(round_number, len(client_ids))
        return Retaken(
            under_all_names(statistics, self._layers),
            max(each[0] for each in parts),
            sum(each[1] for each in parts),
            sum(each[2] for each in parts) * self._clock.download_bytes,
        )

    def of_client(self, client_id: ClientId, round_number: int, state: StateDict) -> StateDict:
        """Statistics of one client's model on its own batch, which nobody else learns.

        Args:
            client_id: The client.
            round_number: For messages.
            state: The model.

        Returns:
            By the names of a run's state; empty where its batch is too small, or its code raises.
        """
        moments = self.moments(client_id, round_number, state)
        return {} if moments is None else under_all_names(moments, self._layers)

    def own_seconds(self, client_id: ClientId) -> float:
        """Virtual seconds of that: a forward pass in each view."""
        return sum(self._clock.forward_seconds(client_id, mode) for mode in self._modes)

    def moments(self, client_id: ClientId, round_number: int, state: StateDict) -> StateDict | None:
        """What one client tells of a model, as `retake` pools it.

        Args:
            client_id: The client.
            round_number: For messages.
            state: The model.

        Returns:
            Two tensors a layer and view; None where its batch is too small, or its code raises.
        """
        return self._told_by(client_id, self._views(state), round_number)

    @property
    def _modes(self) -> list[Mode]:
        """Whose forward pass each view's costs."""
        return ["fp"] if self._evaluator.scheme is None else ["fp", "qat"]

    def _told(
        self, client_ids: Sequence[ClientId], round_number: int, state: StateDict
    ) -> Iterator[tuple[ClientId, StateDict]]:
        """What clients tell of a model, of those that tell anything."""
        views = self._views(state)
        pristine = [Pristine(trainer.lightning_module, with_weights=True) for trainer in views.values()]
        for client_id in client_ids:
            if self._own is not None:
                own = self._own(client_id, round_number)
                for trainer in views.values():
                    trainer.lightning_module.load_state_dict(own, strict=False)
            moments = self._told_by(client_id, views, round_number)
            for each in pristine:
                each.restore()
            if moments is not None:
                yield client_id, moments

    def _views(self, state: StateDict) -> dict[Mode, ClientTrainer]:
        """The modules of both views, by the mode whose forward pass each costs."""
        evaluator = self._evaluator
        modules: dict[Mode, L.LightningModule] = {"fp": evaluator.model(state)}
        if evaluator.scheme is not None:
            modules["qat"] = evaluator.on_grid(state)
        autocast = {"fp": evaluator.autocast, "qat": nullcontext}
        return {
            mode: ClientTrainer(module, self._options, module.device, autocast[mode], self._datamodule)
            for mode, module in modules.items()
        }

    def _told_by(self, client_id: ClientId, views: Mapping[Mode, ClientTrainer], round_number: int) -> StateDict | None:
        """What a client sends; None where it has nothing to tell, or its code raises."""
        where = f"while client {client_id} took batch statistics, after round {round_number}"
        try:
            with noted(where), process_state_kept():
                return self._moments(views, client_id)
        except BaseException as error:
            if self._on_error == "raise" or not is_clients(error):
                raise
            rank_zero_warn(f"{where}: {ClientError.of(error).reason}; the others' are taken")
            return None

    def _moments(self, views: Mapping[Mode, ClientTrainer], client_id: ClientId) -> StateDict | None:
        """What the client sends; None where its batch tells nothing."""
        found: StateDict = {}
        try:
            batch = self._datamodule.calibration_batch(client_id)
        except StopIteration:
            return None
        for mode, trainer in views.items():
            step = partial(trainer.run_step, copy.deepcopy(batch))  # hooks and steps may change it
            try:
                with generators_kept():
                    moments = batch_moments(trainer.lightning_module, self._layers, step)
            except TooFewValuesError:
                return None
            if not are_usable(moments, len(self._layers)):
                return None
            found |= moments if mode == "fp" else as_deployed(moments)
        return found

    def _warn(self, round_number: int, num_clients: int) -> None:
        """Once a run."""
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                f"round {round_number}: none of {num_clients} clients could take BatchNorm statistics of the global "
                "model, so they stay as they were: a batch of one example has none, nor has one that is not finite "
                "(said once a run)"
            )


def statistics_names(layers: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Names in the module's state of the statistics that are taken anew.

    Args:
        layers: As in `StatisticsRound`.
    """
    return frozenset(f"{name}.{kind}" for names in layers.values() for name in names for kind in (MEAN, VARIANCE))


def pooled(received: Mapping[Any, StateDict], weights: Mapping[Any, int], processes: Processes) -> StateDict:
    """Mean and variance of all clients' values together, of the mean and the variance of each client's.

    Args:
        received: By client, of those of this process: `LAYER.running_mean` and `LAYER.running_var`.
        weights: Of each of them.
        processes: Those that hold the others.

    Returns:
        The same on every process, by the same names; empty where no client sent any.
    """
    means = _exact_mean(received, weights, processes)
    apart = {
        client_id: {name: (value - means[name]) ** 2 for name, value in moments.items() if name.endswith(MEAN)}
        for client_id, moments in received.items()
    }
    between = _exact_mean(apart, weights, processes)
    return means | {
        name.removesuffix(MEAN) + VARIANCE: means[name.removesuffix(MEAN) + VARIANCE] + value
        for name, value in between.items()
    }


def _exact_mean(states: Mapping[Any, StateDict], weights: Mapping[Any, int], processes: Processes) -> StateDict:
    total = ExactMean()
    for client_id, state in states.items():
        total.add(state, weights[client_id])
    return total.mean(processes)[0]


def are_usable(moments: StateDict, num_layers: int) -> bool:
    """Whether there are two tensors for every layer, of a size that can be added exactly, and no variance below 0."""
    least = {name: 0.0 if name.endswith(VARIANCE) else -_LIMIT for name in moments}
    return len(moments) == 2 * num_layers and all(
        bool(((each >= least[name]) & (each < _LIMIT)).all()) for name, each in moments.items()
    )


def under_all_names(statistics: StateDict, layers: Mapping[str, Sequence[str]]) -> StateDict:
    """A layer that the module holds under several names has its statistics under each.

    Args:
        statistics: By the layers' first names, of one view or of both.
        layers: As in `StatisticsRound`.
    """
    found: StateDict = {}
    for key, value in statistics.items():
        name, _, kind = key.rpartition(".")
        prefix = "" if name in layers else DEPLOYED
        found |= {f"{prefix}{other}.{kind}": value for other in layers[name.removeprefix(prefix)]}
    return found
