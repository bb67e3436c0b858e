"""Everything that a run needs, checked and put together before the first round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import lightning as L
from lightning.fabric import Fabric

from fedhq_lightning.allocation import AllocationContext, Allocator, FixedAllocator
from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.devices import Fleet
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import checks
from fedhq_lightning.federated.allocation_checks import check_allocation
from fedhq_lightning.federated.asynchronous.checks import checked
from fedhq_lightning.federated.beside import named_beside
from fedhq_lightning.federated.callback import Monitored
from fedhq_lightning.federated.client_analysis import ClientAnalyst
from fedhq_lightning.federated.client_evaluation import first_held_back
from fedhq_lightning.federated.client_sizes import ClientSizes, sizes_of
from fedhq_lightning.federated.clients import (
    check_last_batches,
    client_to_probe,
    num_batches,
    plain_client_ids,
    warn_of_examples_never_drawn,
)
from fedhq_lightning.federated.fewest_updates import check_cohort_size, fewest_updates
from fedhq_lightning.federated.measured_seconds import MeasuredSeconds
from fedhq_lightning.federated.monitor_mode import resolve_monitor_mode
from fedhq_lightning.federated.personal.personal_layers import OwnLayers, check_monitor
from fedhq_lightning.federated.privacy.ledger import Ledger
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy
from fedhq_lightning.federated.private_run import check_private_run, ledger_of
from fedhq_lightning.federated.sampling import CohortSampler
from fedhq_lightning.federated.secure.run_terms import RunTerms, check_sum_is_all
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.federated.statistics_round import statistics_names
from fedhq_lightning.federated.wire import Link, warn_of_lost_changes
from fedhq_lightning.local.data_hooks import prepare_data
from fedhq_lightning.local.module_checks import (
    check_is_lightning_module,
    check_module,
    check_state,
)
from fedhq_lightning.local.template import set_up_template
from fedhq_lightning.quantize import LayerScheme, QuantScheme, attach_ranges
from fedhq_lightning.risk.divergence import DivergenceMeasure, LabelStatistics
from fedhq_lightning.risk.sensitivity import SensitivityMeasure
from fedhq_lightning.support.lightnings import is_overridden
from fedhq_lightning.support.notes import noted
from fedhq_lightning.support.seeds import derive_seed, seed_generators
from fedhq_lightning.support.views import RANGE
from fedhq_lightning.types import MODES, ClientId, StateDict


@dataclass(frozen=True)
class Job:
    """One run's checked inputs.

    Attributes:
        template: Copy of the user's module, set up; the source of every resident module.
        datamodule: The clients' data, set up.
        sampler: Draws cohorts.
        probe: What one batch told about the module.
        grids: Grid of every quantized weight by its name in the state.
        link: Encodes both ways.
        clock: Virtual seconds.
        allocator: Proposes plans, set up.
        monitored: What is watched.
        sizes: Examples of the clients.
        beside: What goes down beside the initial model, by its own names.
        own_layers: What of the model is each client's own.
        ledger: Keeps account of the privacy that is spent.
        min_updates: Usable updates that a round takes to move the model.
        secure: What secure rounds have in common; None where the server sees every update.
        measured: What stands in place of the clock's seconds of local fits; None where they count.
    """

    template: L.LightningModule
    datamodule: FederatedDataModule
    sampler: CohortSampler
    probe: checks.Probe
    grids: dict[str, LayerScheme]
    link: Link
    clock: VirtualClock
    allocator: Allocator
    monitored: Monitored
    sizes: ClientSizes
    beside: StateDict
    own_layers: OwnLayers
    ledger: Ledger
    min_updates: int
    secure: RunTerms | None
    measured: MeasuredSeconds | None

    @cached_property
    def validation_loaders(self) -> list[Any]:
        """Held-out loaders of the server; none where each client has a model of its own."""
        return [] if self.own_layers.names else checks.validation_loaders(self.template, self.datamodule)

    @property
    def shared_batch_norms(self) -> Mapping[str, Sequence[str]]:
        """BatchNorm layers whose statistics are everybody's, as in `Probe`."""
        own = self.own_layers.names
        return {
            name: all_names
            for name, all_names in self.probe.batch_norms.items()
            if statistics_names({name: [name]}) - own
        }

    @cached_property
    def parameter_names(self) -> frozenset[str]:
        """Names of trained parameters in a state; tied ones under each of their names."""
        return _parameter_names(self.template, self.probe.frozen)

    def initial_state(self) -> StateDict:
        """The user's weights."""
        return {name: value.detach().cpu().clone() for name, value in self.template.state_dict().items()}


def set_up(
    settings: RunSettings,
    fabric: Fabric,
    module: L.LightningModule,
    datamodule: FederatedDataModule,
    resumes: bool = False,
    clients_of: Callable[[Sequence[ClientId]], Sequence[ClientId]] = lambda client_ids: client_ids,
) -> Job:
    """Check and assemble.

    Args:
        settings: What was asked for.
        fabric: Where modules run, and in which precision.
        module: The user's.
        datamodule: The clients' data.
        resumes: Whether a checkpoint's state follows.
        clients_of: Those of all clients whose data are here.

    Raises:
        ConfigurationError: Whatever can be known to be wrong before round 1.
    """
    check_module(module)
    seed_generators(derive_seed(settings.seed, "set up"))
    prepare_data(datamodule, "fit")
    client_ids = clients_of(plain_client_ids(datamodule.client_ids))
    fleet = Fleet.resolve(settings.fleet, settings.seed)
    fleet.check_size(len(client_ids))
    sizes = sizes_of(settings, datamodule, client_ids, fleet)
    sampler = CohortSampler(
        *(client_ids, settings.clients_per_round, settings.seed, sizes.empty, fleet.availability),
        by_coin_flips=isinstance(settings.privacy, CentralPrivacy),
        holds=sizes.holds,
    )
    check_cohort_size(settings, sampler.cohort_size)
    asynchronous = checked(settings, fleet, sampler.cohort_size)
    looked_at = sizes.looked_at

    client_id = client_to_probe(datamodule, looked_at)
    first_batch = f"while the first batch of client {client_id} was tried, before round 1"
    with noted(first_batch):
        template = set_up_template(
            module, settings.fit_options, lambda: datamodule.calibration_batch(client_id), datamodule
        )
    allocator = settings.allocator or FixedAllocator("fp")
    grids = grids_of(settings, template)
    _attach_ranges(settings, template)
    quantized = {name.removesuffix(".weight"): grid.activation_bits is not None for name, grid in grids.items()}
    asked = settings.evaluate_clients if settings.privacy is None else False  # it would be told without noise
    held_back = first_held_back(asked, template, datamodule, looked_at, settings.fine_tuning is not None)
    with noted(first_batch):
        found = checks.probe(
            template, datamodule, client_id, settings.fit_options, quantized, fabric.autocast, held_back
        )
    if settings.export_inputs is not None:
        checks.check_export_inputs(settings.export_inputs, datamodule, found.example_args)
    check_last_batches(datamodule, looked_at, found.batch_size, found.batch_norm, settings.fit_options)
    warn_of_examples_never_drawn(datamodule, client_id, settings.fit_options)
    check_state(template, found.frozen)
    sent = template.state_dict()
    own_layers = OwnLayers()
    if settings.personal_layers is not None:
        own_layers = settings.personal_layers.found_in(template, sent, found.fixed)
        check_monitor(settings.monitor, found.validation_names)
        found = replace(found, validation_names=[])
    sent_grids = {name: grid for name, grid in grids.items() if name in sent}
    batch_norms = found.batch_norms if settings.retake_batch_statistics else {}
    retaken = statistics_names(batch_norms)
    up_grids, stays = _up_grids(settings, template, sent_grids), found.fixed | own_layers.names
    sends_changes = asynchronous is not None and asynchronous.sends_changes
    not_up = retaken & sent.keys()
    link = Link(sent, sent_grids, settings.uplink, settings.downlink, stays, not_up, up_grids, sends_changes)
    state = {name: value.detach() for name, value in template.state_dict().items()}
    beside = _carry_beside(settings, link, template, found.frozen)
    _, download_bytes = link.down(state | named_beside(beside), 0)
    upload_bytes, secure = link.num_payload_bytes(0, client_id), None
    if settings.secure_aggregation is not None:
        secure = RunTerms.of(settings.secure_aggregation, link.sent_shapes, sampler.cohort_size, sizes.all())
        upload_bytes, download_bytes = secure.uplink_bytes, download_bytes + secure.downlink_bytes
    clock = VirtualClock(
        fleet,
        client_ids,
        found.costs,
        found.batch_size,
        lambda client_id: sizes.of(clock.position(client_id)),
        settings.fit_options,
        download_bytes=download_bytes,
        upload_bytes=upload_bytes,
        first_download_bytes=link.fixed_bytes,
        precision="bf16" if settings.precision == "bf16-mixed" else "fp32",
        drop_last=found.drop_last,
        gives_batch=lambda client_id: num_batches(datamodule, client_id) > 0,
        kernels=LaneKernels.of(template, grids, settings.lanes),
        calibrates_ranges=settings.scheme is not None and settings.scheme.has_static_ranges,
        fits_per_round=1 if settings.ditto is None else 2,
    )
    monitor = checks.resolve_monitor(settings.monitor, found)
    monitored = Monitored(monitor, resolve_monitor_mode(monitor, settings.monitor_mode))
    allocator.begin(
        AllocationContext.on_clock(
            clock,
            sampler.with_data(),
            settings.seed,
            divergence=_divergence(datamodule, looked_at),
            sensitivity=_sensitivity(settings, fabric, template, datamodule),
            cohort=sampler.cohort if fleet.availability is None and asynchronous is None else None,
            max_rounds=settings.max_rounds,
            eval_every_n_rounds=settings.eval_every_n_rounds,
            round_deadline=settings.round_deadline,
            rounds_wait=asynchronous is None,
            rounds_to_arrive=1 if asynchronous is None else -(-sampler.cohort_size // asynchronous.buffer_size),
            monitor_mode=monitored.mode,
            resumes=resumes,
        )
    )
    check_allocation(settings, allocator, looked_at, clock)
    has_trace = fleet.availability is not None
    some_batch = partial(datamodule.calibration_batch, client_id)
    check_private_run(settings, allocator, found, monitor, has_trace, some_batch)
    if secure is not None:
        check_sum_is_all(allocator, bool(batch_norms))
        if settings.aggregator.sends_scaled_changes:
            secure.check_lengths(max(map(clock.num_steps, looked_at)), found.optimizer_settings)
    warn_of_lost_changes(settings.uplink, up_grids)
    sizes.tell_of_empty()
    return Job(
        *(template, datamodule, sampler, found, grids, link, clock, allocator, monitored),
        sizes=sizes,
        beside=beside,
        own_layers=own_layers,
        ledger=ledger_of(settings, datamodule, sampler, clock.position),
        min_updates=fewest_updates(settings, 1 if secure is None else secure.threshold),
        secure=secure,
        measured=MeasuredSeconds.of(settings.measured_seconds, settings.max_rounds),
    )


def check_types(module: Any, datamodule: Any) -> FederatedDataModule:
    """Refuse what is no LightningModule, loaders and an ordinary data module, which have no clients, and no data."""
    check_is_lightning_module(module)
    if isinstance(datamodule, FederatedDataModule):
        return datamodule
    around = "an ordinary LightningDataModule"
    if not isinstance(datamodule, L.LightningDataModule):
        around += " that gives train and held-out loaders"
    given = "no data were given" if datamodule is None else f"got {type(datamodule).__name__}"
    raise ConfigurationError(
        f"datamodule: {given}; give a FederatedDataModule, which knows whose data are whose, for example "
        f"PartitionedDataModule(datamodule, partitioner) around {around}"
    )


def held_out_data(
    module: L.LightningModule, stage: str, dataloaders: Any, datamodule: Any, fitted_on: L.LightningDataModule | None
) -> Any:
    """Whose batches `validate` and `test` evaluate on: loaders or the data module given, else that of the last fit.

    Raises:
        ConfigurationError: The module has no such step; two things were given, or none.
    """
    if not is_overridden(f"{stage}_step", module):
        raise ConfigurationError(f"{type(module).__name__} has no {stage}_step; add one that logs a metric")
    if dataloaders is not None and datamodule is not None:
        raise ConfigurationError(f"{stage}: dataloaders and datamodule are both given; give one of them")
    data = next((each for each in (dataloaders, datamodule, fitted_on) if each is not None), None)
    if data is None:
        raise ConfigurationError(f"{stage}: no data; give a loader, several, or a data module, or call fit before")
    return data


def grids_of(settings: RunSettings, template: L.LightningModule) -> dict[str, LayerScheme]:
    """Grid of each quantized weight by its name in the state; empty without a scheme."""
    if settings.scheme is None:
        return {}
    grids = settings.scheme.for_layers(template)
    for mode in MODES[1:]:
        settings.lanes.kernels_of(mode, list(grids))  # refuses patterns that match no layer
    return {f"{name}.weight": grid for name, grid in grids.items()}


def _up_grids(
    settings: RunSettings, template: L.LightningModule, grids: dict[str, LayerScheme]
) -> dict[str, LayerScheme]:
    """Grids on the way up: those of the deployed model, unless `uplink_bits` says how many bits it shall be."""
    bits, scheme = settings.uplink_bits, settings.scheme
    if bits is None:
        return grids
    if scheme is None:
        scheme = QuantScheme(f"w{bits}")
    else:
        scheme = replace(scheme, scheme=str(replace(LayerScheme.parse(scheme.scheme), weight_bits=bits)))
    state = template.state_dict()
    found = {f"{name}.weight": grid for name, grid in scheme.for_layers(template).items()}
    return {name: grid for name, grid in found.items() if name in state}


def _attach_ranges(settings: RunSettings, template: L.LightningModule) -> None:
    """Give the module that all others are copied from its static activation ranges, if the scheme has any.

    Raises:
        ConfigurationError: They would not travel, because the module's own `state_dict` leaves them out.
    """
    held = [] if settings.scheme is None else attach_ranges(template, settings.scheme)
    if left_out := [name for name in held if name not in template.state_dict()]:
        raise ConfigurationError(
            f"{type(template).__name__}.state_dict leaves out {', '.join(left_out[:3])}, static activation ranges of "
            f"scheme '{settings.scheme}', which clients send with their weights; keep names that end in "
            f"'.{RANGE}', or take dynamic ranges: leave the s out of the scheme"
        )


def _parameter_names(template: L.LightningModule, frozen: Set[str]) -> frozenset[str]:
    return frozenset(name for name, _ in template.named_parameters(remove_duplicate=False)) - frozen


def _carry_beside(settings: RunSettings, link: Link, template: L.LightningModule, frozen: Set[str]) -> StateDict:
    """Have the link carry what the algorithm sends beside models; what goes down first, by its own names."""
    state, names = template.state_dict(), link.trained(_parameter_names(template, frozen))
    parameters = {name: state[name].detach().cpu() for name in names}
    down = settings.aggregator.beside_down(parameters)
    link.carry(down, settings.aggregator.beside_up(parameters))
    return down


def _sensitivity(
    settings: RunSettings, fabric: Fabric, template: L.LightningModule, datamodule: FederatedDataModule
) -> Callable[[ClientId, SensitivityMeasure], float | None] | None:
    """What clients measure on the initial model, or None without a scheme."""
    if settings.scheme is None:
        return None
    analyst = ClientAnalyst(
        template, settings.scheme, settings.lanes, settings.fit_options, datamodule, fabric.device, fabric.autocast
    )
    return analyst.sensitivity


def _divergence(
    datamodule: FederatedDataModule, client_ids: Sequence[ClientId]
) -> Callable[[ClientId, DivergenceMeasure], float] | None:
    """Each client's label distance to the mix of these, or None where labels are not told."""
    if datamodule.label_counts(client_ids[0]) is None:
        return None

    return LabelStatistics(client_ids, datamodule.label_counts).divergence
