"""Evaluation on clients: global models, or each client's own, on what the clients hold back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.data.whole_batches import batches_of
from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.federated.client_errors import ClientError, OnClientError, is_clients
from fedhq_lightning.federated.client_evaluation import ClientEvaluation
from fedhq_lightning.federated.personal.client_models import ClientModels
from fedhq_lightning.federated.sampling import share_of
from fedhq_lightning.local.evaluation import Evaluator, as_loaders
from fedhq_lightning.local.logged_values import num_examples
from fedhq_lightning.local.pristine import Pristine
from fedhq_lightning.run.evaluated_clients import ClientsEvaluation, EvaluatedClient, group_means
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.notes import noted
from fedhq_lightning.support.process_state import process_state_kept
from fedhq_lightning.support.seeds import generators_kept
from fedhq_lightning.support.typed_json import typed
from fedhq_lightning.types import ClientId, Mode, MonitorMode, StateDict

_MODES: Mapping[str, Mode] = {"fp": "fp", "quantized": "qat"}
"""Whose forward pass a view's costs."""


@dataclass(frozen=True)
class _View:
    """A model in one view, as every client finds it."""

    module: L.LightningModule
    autocast: Callable[[], AbstractContextManager[Any]]
    pristine: Pristine


class EvaluationRound:
    """Has the same clients evaluate models, each on what it holds back.

    A client's metrics are what `validation_step` logs on its own examples, in a module as if it were the first, so
    neither other clients nor the number of processes change a bit.

    Args:
        options: How often, and how many clients.
        panel: The clients, in the order of all.
        directions: Which way each metric is better, where that is known.
        evaluator: Makes the views.
        models: Knows each client's model.
        datamodule: Gives each client's batches.
        clock: Virtual seconds.
        processes: Those that share the clients.
        on_error: What happens when a client's code raises: unless that ends the run, the client is left out.
    """

    def __init__(
        self,
        options: ClientEvaluation,
        panel: Sequence[ClientId],
        directions: Mapping[str, MonitorMode],
        evaluator: Evaluator,
        models: ClientModels,
        datamodule: FederatedDataModule,
        clock: VirtualClock,
        processes: Processes,
        on_error: OnClientError = "raise",
    ) -> None:
        self.panel = panel
        self.directions = directions
        self._options = options
        self._evaluator = evaluator
        self._models = models
        self._datamodule = datamodule
        self._clock = clock
        self._processes = processes
        self._on_error = on_error
        self._positions = frozenset(map(clock.position, panel))

    def after_round(
        self, round_number: int, clients: Iterable[ClientRecord], state: RunState, is_evaluated: bool
    ) -> ClientsEvaluation | None:
        """Note how clients trained, and have them evaluate the model that is served, where the round is due.

        Args:
            round_number: From 0; round 0 never is due.
            clients: The round's.
            state: After the round; keeps how the clients of the panel trained the last time.
            is_evaluated: Whether the server evaluates after this round.
        """
        trained = {self._clock.position(each.client_id): each.mode for each in clients if each.num_steps}
        state.last_modes |= {position: mode for position, mode in trained.items() if position in self._positions}
        if not (is_evaluated and round_number and round_number % (self._options.every_n_rounds or 1) == 0):
            return None
        return self.evaluate_own(round_number, state.served, state.last_modes)

    def metrics(self, found: ClientsEvaluation | None) -> dict[str, float]:
        """What a round's record holds of it among its metrics; nothing of a round in which clients were not asked."""
        return {} if found is None else found.metrics(self.directions)

    def evaluate_own(self, round_number: int, state: StateDict, modes: Mapping[int, Mode]) -> ClientsEvaluation:
        """What every client finds with its own model, as `evaluate` gives it.

        Args:
            round_number: After which.
            state: The global model, which is a client's where nothing is its own.
            modes: As for `evaluate`.
        """
        models = self._models
        return self.evaluate(
            round_number,
            lambda client_id: models.of(client_id, round_number, state),
            modes,
            lambda client_id, own: 0.0 if own is state else models.statistics_seconds(client_id),
        )

    def evaluate(
        self,
        round_number: int,
        state_of: Callable[[ClientId], StateDict],
        modes: Mapping[int, Mode],
        seconds_before: Callable[[ClientId, StateDict], float] = lambda client_id, state: 0.0,
    ) -> ClientsEvaluation:
        """What every client finds, the same on every process.

        Args:
            round_number: For messages.
            state_of: The model that a client evaluates. Where one client's is the very object that the one before had,
                it is made ready once.
            modes: How clients trained the last time, by position; those that have not yet are left out.
            seconds_before: Virtual seconds that a client takes to make its model ready, beside the download.
        """
        found, seconds, sent, views, shown = list[EvaluatedClient](), 0.0, 0, dict[str, _View](), None
        for client_id in share_of(self._processes, self.panel, [1.0] * len(self.panel)):
            state = state_of(client_id)
            if state is not shown:
                views, shown = self._views(state), state
            told = self._told_by(client_id, views, round_number)
            if told is None:
                continue
            num_held, metrics = told
            num_bytes = len(json.dumps(metrics).encode())
            before = seconds_before(client_id, state)
            seconds = max(seconds, before + self._seconds(client_id, num_held, num_bytes, views))
            sent += num_bytes
            mode = modes.get(self._clock.position(client_id))
            found.append(EvaluatedClient(client_id, self._clock.tier(client_id), mode, num_held, metrics))
        parts = self._processes.gather((seconds, sent, [asdict(each) for each in found]))
        everyone = [typed(each, EvaluatedClient) for _, _, clients in parts for each in clients]
        everyone.sort(key=lambda each: self._clock.position(each.client_id))
        return ClientsEvaluation(
            tuple(everyone),
            len(self.panel) - len(everyone),
            max(each[0] for each in parts),
            sum(each[1] for each in parts),
            len(everyone) * self._clock.download_bytes,
            group_means(everyone),
        )

    def _seconds(self, client_id: ClientId, num_held: int, num_bytes: int, views: Iterable[str]) -> float:
        return self._clock.evaluation_seconds(client_id, num_held, num_bytes, [_MODES[view] for view in views])

    def _views(self, state: StateDict) -> dict[str, _View]:
        evaluator = self._evaluator
        modules = {"fp": (evaluator.model(state), evaluator.autocast)}
        if evaluator.scheme is not None:
            modules["quantized"] = (evaluator.deployed(state), nullcontext)
        return {
            name: _View(module, autocast, Pristine(module, with_weights=True))
            for name, (module, autocast) in modules.items()
        }

    def _told_by(
        self, client_id: ClientId, views: Mapping[str, _View], round_number: int
    ) -> tuple[int, dict[str, float]] | None:
        """Examples that a client holds back, and its metrics; None where there are none, or its code raises."""
        where = f"while client {client_id} evaluated the model on what it holds back, after round {round_number}"
        try:
            with noted(where), process_state_kept(), generators_kept():
                return self._evaluated(client_id, views)
        except BaseException as error:
            if self._on_error == "raise" or not is_clients(error):
                raise
            rank_zero_warn(f"{where}: {ClientError.of(error).reason}; it is left out")
            return None
        finally:
            for view in views.values():
                view.pristine.restore()

    def _evaluated(self, client_id: ClientId, views: Mapping[str, _View]) -> tuple[int, dict[str, float]] | None:
        num_held, metrics = 0, dict[str, float]()
        for name, view in views.items():
            loaders = [_Counted(each) for each in as_loaders(self._datamodule.client_val_dataloader(client_id))]
            if not loaders:
                return None
            logged = self._evaluator.metrics_of(view.module, loaders, autocast=view.autocast)
            num_held = sum(each.num_examples for each in loaders)
            if not num_held:
                return None
            metrics |= {f"{name}/{metric}": value for metric, value in logged.items()}
        return num_held, metrics


class _Counted:
    """A loader, and how many examples it has given."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.num_examples = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in batches_of(self._loader):
            self.num_examples += num_examples(batch)
            yield batch
