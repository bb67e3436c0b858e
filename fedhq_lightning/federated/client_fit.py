"""One client's turn: load the global weights, fit in the client's lane, encode the update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import lightning as L
import torch

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.data.whole_batches import batches_of
from fedhq_lightning.devices.roofline import ClientTime
from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.aggregator import Aggregator, ClientStart, ClientTerm
from fedhq_lightning.federated.algorithms.fed_prox import ProximalTerm
from fedhq_lightning.federated.beside import named_beside
from fedhq_lightning.federated.client_analysis import ClientAnalyst
from fedhq_lightning.federated.client_errors import ClientError, OnClientError, free_memory, is_clients
from fedhq_lightning.federated.client_uplink import ClientUplink
from fedhq_lightning.federated.lane_fit import LaneFitter
from fedhq_lightning.federated.not_finite import column_names, odd_values
from fedhq_lightning.federated.personal.personal_layers import OwnLayers
from fedhq_lightning.federated.privacy.mechanisms import LocalPrivacy
from fedhq_lightning.federated.update_checks import is_finite
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.risk.sensitivity import SensitivityMeasure, check_sensitivity_measure
from fedhq_lightning.run.client_store import PERSONAL, ClientStore
from fedhq_lightning.run.records import ClientRecord, Status
from fedhq_lightning.support.process_state import process_state_kept
from fedhq_lightning.support.seeds import derive_seed, generators_kept, seed_generators
from fedhq_lightning.types import ClientId, FitOptions, Mode, StateDict


@dataclass(frozen=True)
class Update:
    """What a client sends back.

    Attributes:
        record: For the log; holds the number of examples, its weight.
        payload: Bytes on the wire; empty where the client was late or idle, or failed.
    """

    record: ClientRecord
    payload: bytes


@dataclass(frozen=True)
class _LocalFit:
    """What a local fit came to; by default that it took no step, and why."""

    num_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    payload: bytes = b""
    reason: str = ""
    sensitivity: float | None = None
    error: ClientError | None = None
    mode: Mode | None = None
    analysis_wall_seconds: float = 0.0


class ClientFitter:
    """Runs clients one after another on this process, in one resident module per mode.

    Args:
        template: The user's module, set up; copied once per mode, never trained.
        scheme: Deployment grid, or None where every client trains in fp.
        lanes: How PTQ and QAT compute.
        options: Length of a local fit.
        datamodule: Gives each client's loader.
        aggregator: May add a client-side gradient term.
        link: Encodes updates.
        clock: Virtual seconds and device of each client.
        seed: The run's seed.
        device: Where modules train.
        autocast: Context of the training steps.
        wanted_sensitivity: What every client measures on the model it received, before it trains, or None. The forward
            passes for it cost the client virtual time, which counts for the deadline too.
        batch_norms: Layers whose statistics are taken anew, for the calibration of static activation ranges.
        on_error: What happens when a client's code raises.
        store: Where clients keep what they keep from round to round; None where they keep nothing.
        uplink: How updates are rounded on their way up; by default as the link does.
        own_layers: What of the model is each client's own; by default nothing.
        privacy: Noise on the gradients of local fits, or None.
        ditto: How strongly a model of each client's own, trained beside the global one, is held to it; None for none.

    Attributes:
        first_error: What the first client's code raised in round 1, until somebody has looked.

    Raises:
        ConfigurationError: A sensitivity is wanted, but there is no scheme to be sensitive to; or unknown measure.
    """

    def __init__(
        self,
        template: L.LightningModule,
        scheme: QuantScheme | None,
        lanes: LaneOptions,
        options: FitOptions,
        datamodule: FederatedDataModule,
        aggregator: Aggregator,
        link: Link,
        clock: VirtualClock,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        wanted_sensitivity: SensitivityMeasure | None = None,
        batch_norms: Mapping[str, Sequence[str]] | None = None,
        on_error: OnClientError = "raise",
        store: ClientStore | None = None,
        uplink: ClientUplink | None = None,
        own_layers: OwnLayers | None = None,
        privacy: LocalPrivacy | None = None,
        ditto: float | None = None,
    ) -> None:
        self._template = template
        self._datamodule = datamodule
        self._aggregator = aggregator
        self._link = link
        self._clock = clock
        self._seed = seed
        self._on_error: OnClientError = on_error
        self._store = store
        self._uplink = uplink or ClientUplink(link, seed)
        self._own_layers = own_layers or OwnLayers()
        self._ditto = ditto
        self._lanes = LaneFitter(
            *(template, scheme, lanes, options, datamodule, seed, device, autocast, batch_norms or {}),
            *(link.fixed_names - self._own_layers.names, self._own_layers, privacy),
        )
        self.first_error: BaseException | None = None
        self._wanted_sensitivity = wanted_sensitivity
        self._analyst: ClientAnalyst | None = None
        if wanted_sensitivity is not None:
            check_sensitivity_measure(wanted_sensitivity)
            if scheme is None:
                raise ConfigurationError(
                    f"the allocator wants every client's sensitivity ({wanted_sensitivity}), but trainer.scheme is not "
                    "set; give a scheme such as 'w4a8'"
                )
            self._analyst = ClientAnalyst(template, scheme, lanes, options, datamodule, device, autocast)

    def fit(
        self,
        round_number: int,
        client_id: ClientId,
        mode: Mode,
        received: StateDict,
        downlink_bytes: int,
        learning_rate_scale: float,
        deadline: float | None,
        is_first: bool = False,
        work: float = 1.0,
        beside: StateDict | None = None,
    ) -> Update:
        """Train one client from the model it received.

        A client whose virtual time passes the deadline is late: its work would be thrown away, so it is not done.
        One that takes no optimizer step is idle: it has nothing to send, and no virtual time passes for it after the
        download and what it measures for the allocator. One whose code raises is quarantined, unless errors shall end
        the run: it sends nothing either. Without memory for its mode it trains in `fp`, which takes least.

        Args:
            round_number: From 1.
            client_id: The client.
            mode: Its lane.
            received: The global model as it came down.
            downlink_bytes: Size of what came down.
            learning_rate_scale: Factor on every learning rate.
            deadline: Virtual seconds, or None.
            is_first: Whether the client takes part for the first time, and receives what no round changes too.
            work: Share of its local steps that it takes. Its weight in the mean stays: it changes less as it is.
            beside: What came down beside the model.
        """
        seconds = self._clock.time(client_id, mode, is_first, work)
        analysis_seconds = self._analysis_seconds(client_id)
        late = deadline is not None and seconds.total + analysis_seconds > deadline
        done, started = _LocalFit(), time.perf_counter()
        if not late:
            done = self._tried(
                round_number,
                client_id,
                mode,
                lambda lane: self._train(
                    round_number, client_id, lane, received, learning_rate_scale, work, beside or {}
                ),
            )
        status: Status = "late" if late else "quarantined" if done.error else "ok" if done.num_steps else "idle"
        told = ClientRecord(
            round=round_number,
            client_id=client_id,
            tier="",
            mode=done.mode or mode,
            status=status,
            num_examples=0,
            num_steps=done.num_steps,
            metrics=done.metrics,
            fit_wall_seconds=time.perf_counter() - started - done.analysis_wall_seconds,
            download_seconds=0.0,
            compute_seconds=0.0,
            upload_seconds=0.0,
            uplink_bytes=len(done.payload),
            downlink_bytes=downlink_bytes,
            reason=done.error.reason if done.error else done.reason,
            analysis_seconds=analysis_seconds,
            sensitivity=done.sensitivity,
            traceback=done.error.traceback if done.error else "",
        )
        return Update(charged(told, self._clock, seconds), done.payload)

    def why_not_finite(self, round_number: int, client_id: ClientId) -> str:
        """Why an update of a client's holds values that are not finite, in words: where its data do, or that none do.

        Its batches are gone through once more, in the order of its fit. A module may fill in what is missing: data are
        blamed only where a step of the initial model on them has no finite loss.
        """
        with process_state_kept(), generators_kept():
            seed_generators(derive_seed(self._seed, "fit", round_number, client_id))
            try:
                batches = batches_of(self._datamodule.train_dataloader(client_id))
                found = odd_values(batches, column_names(self._datamodule))
                is_to_blame = found is not None and not self._has_loss_on(found.batch)
            except Exception as error:
                if not is_clients(error):
                    raise
                return "and its data could not be looked through"
        if found is not None and is_to_blame:
            return found.words
        return "its data are not why, so the training diverged: look at the loss and the learning rate"

    def _has_loss_on(self, batch: Any) -> bool:
        """Whether the initial model, in floating point, has a finite loss on a batch."""
        plain = self._lanes.lane("fp")
        self._lanes.load(plain.lightning_module, self._template.state_dict())
        loss = plain.run_step(batch)
        return loss is not None and bool(loss.isfinite().all())

    def _tried(
        self, round_number: int, client_id: ClientId, mode: Mode, fit_in: Callable[[Mode], _LocalFit]
    ) -> _LocalFit:
        """A local fit; a second one where the first found no memory, or where each client has another try."""
        lane, reason = mode, ""
        for is_last in (False, True):
            try:
                with process_state_kept():
                    done = fit_in(lane)
                return replace(done, mode=lane, reason=done.reason or reason)
            except BaseException as error:
                if self._on_error == "raise" or not is_clients(error):
                    raise
                failed = ClientError.of(error)
                # One for want of memory is let go of: its frames hold what the next try needs.
                if round_number == 1 and self.first_error is None and not failed.is_out_of_memory:
                    error.add_note(f"while client {client_id} trained in {mode}, in round 1")
                    self.first_error = error
                else:  # of an exception that a module keeps, or raises again and again
                    error.__traceback__ = None
            if failed.is_out_of_memory:
                self._lanes.let_go(lane)
                free_memory()
                lane, reason = "fp", f"trained in fp: no memory was left in {mode}"
            if is_last or not (failed.is_out_of_memory or self._on_error == "retry"):
                break
        return _LocalFit(error=failed)

    def _train(
        self,
        round_number: int,
        client_id: ClientId,
        mode: Mode,
        received: StateDict,
        learning_rate_scale: float,
        work: float,
        beside: StateDict,
    ) -> _LocalFit:
        kept = {} if self._store is None else self._store.load(self._clock.position(client_id), round_number)
        with_own = received | kept.get(PERSONAL, {})
        start, sensitivity, started = with_own if self._ditto is None else received, None, time.perf_counter()
        if self._analyst is not None and self._wanted_sensitivity is not None:
            sensitivity = self._analyst.sensitivity(client_id, self._wanted_sensitivity, start)
        analysis = time.perf_counter() - started
        own_layers = self._own_layers

        def term_of(module: L.LightningModule) -> ClientTerm | None:
            return self._aggregator.client_term(ClientStart(module, beside, kept.get("term", {}), own_layers.names))

        fit = partial(self._lanes.fit, mode, client_id, round_number, scale=learning_rate_scale, work=work)
        done = fit(start, term_of)
        if not done.num_steps:
            return _LocalFit(reason=done.reason, sensitivity=sensitivity, analysis_wall_seconds=analysis)
        state, end, own = done.state, done.end, own_layers.of(done.state)
        if end.change_factor != 1:
            state = _with_scaled_change(state, self._template, received, end.change_factor)
        residual = kept.get("residual", {})
        sent = self._uplink.send(state | named_beside(end.beside), received, round_number, client_id, residual)
        if self._ditto is not None:
            held_to_global = partial(ProximalTerm, mu=self._ditto, anchors=received)
            beside_it = fit(with_own, held_to_global, purpose="own fit").state
            own = {name: each.detach().cpu() for name, each in beside_it.items() if name not in self._link.fixed_names}
        self._keep(client_id, round_number, {"term": end.kept, "residual": sent.residual, PERSONAL: own})
        return _LocalFit(
            done.num_steps, done.metrics, sent.payload, sensitivity=sensitivity, analysis_wall_seconds=analysis
        )

    def _keep(self, client_id: ClientId, round_number: int, parts: Mapping[str, StateDict]) -> None:
        """Have a client keep these until its next round, unless they are no numbers."""
        held = {part: state for part, state in parts.items() if state}
        if self._store is not None and held and all(map(is_finite, held.values())):
            self._store.save(self._clock.position(client_id), round_number, held)

    def _analysis_seconds(self, client_id: ClientId) -> float:
        return 0.0 if self._analyst is None else self._clock.analysis_seconds(client_id)


def charged(told: ClientRecord, clock: VirtualClock, seconds: ClientTime) -> ClientRecord:
    """What a client tells of its round, with what the server knows: device, examples and virtual seconds.

    Args:
        told: Its record.
        clock: Of the run.
        seconds: Of a whole round of the client's, as it was planned.
    """
    return replace(
        told,
        tier=clock.profile(told.client_id).name,
        num_examples=clock.num_examples(told.client_id),
        download_seconds=seconds.download_seconds,
        compute_seconds=0.0 if told.status == "idle" else seconds.compute_seconds,
        upload_seconds=0.0 if told.status in ("idle", "quarantined") else seconds.upload_seconds,
    )


@torch.no_grad()
def _with_scaled_change(state: StateDict, module: L.LightningModule, received: StateDict, factor: float) -> StateDict:
    """A local model whose parameters differ from those received by a multiple of how they did."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)} & received.keys() & state.keys()
    bases = {name: received[name].to(state[name].device) for name in names}
    return state | {name: base + factor * (state[name] - base) for name, base in bases.items()}
