"""What is known of the clients: predicted seconds corrected by logged ones, and risk by the data analysis."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fedhq_lightning.allocation.boundary import ClientFacts
from fedhq_lightning.allocation.protocol import AllocationContext
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.samples import FEW, sample_of
from fedhq_lightning.types import ClientId, Mode

if TYPE_CHECKING:
    from fedhq_lightning.devices import FleetSpec
    from fedhq_lightning.risk.sensitivity import SensitivityMeasure
    from fedhq_lightning.run.records import ClientRecord

Divergence: TypeAlias = Literal["total_variation", "hellinger", "jensen_shannon", "updates"]
"""How far a client's data are from everybody's: by its labels, or by the direction of its updates."""

_TRAINED: tuple[Mode, ...] = ("ptq", "qat")
_MOST_MEASURED = 32
"""Clients whose sensitivity is measured before round 1; a run is to begin within seconds."""
_MOST_SAMPLED = 500
"""Clients by whom all are judged where there are many."""
_SAME = 1e-6
"""Times that differ by less are the same but for rounding."""
_NOTABLE = 0.05
"""Times that differ by more belie what was stated of a device."""


class ClientKnowledge:
    """Facts of every client, as far as the analyses and what was logged tell.

    Risk is divergence times sensitivity over the mean sensitivity. A part that is not known of a client is taken to be
    that of the mean client.

    Args:
        context: The run.
        divergence: Measure of the data analysis; None leaves it out.
        sensitivity: Measure of the sensitivity; None leaves it out.
        fleet: Devices as stated, where that differs from the clock's fleet.
        learns_times: Whether logged seconds correct predicted ones.

    Raises:
        ConfigurationError: A label measure for data without labels; see also `AllocationContext.divergence`.
    """

    def __init__(
        self,
        context: AllocationContext,
        divergence: Divergence | None,
        sensitivity: "SensitivityMeasure | None",
        fleet: "FleetSpec | None" = None,
        learns_times: bool = True,
    ) -> None:
        self.context = context
        self.divergence = divergence
        self.sensitivity = sensitivity
        self.ratios: dict[tuple[str, Mode], float] = {}
        self._sums: dict[tuple[str, Mode], tuple[float, float]] = {}
        self._acted_on: dict[tuple[str, Mode], float] = {}
        self._learns_times = learns_times
        self._relative_sensitivity: dict[ClientId, float] = {}
        self._update_divergence: dict[ClientId, float] = {}
        self._mean_update_divergence = 1.0
        self._directions_are_known = False
        self._predicted = context.client_seconds
        if fleet is not None and context.seconds_on is not None:
            self._predicted = context.seconds_on(fleet)
        if divergence not in (None, "updates") and context.divergence is None:
            raise ConfigurationError(
                f"HybridAllocator: divergence={divergence!r} needs the clients' label counts, and the data module "
                "tells none; implement label_counts(client_id), or take divergence='updates', which needs no labels"
            )
        self._label_divergence = lru_cache(maxsize=10_000)(self._measured_divergence)
        sample = _some(context.client_ids, _MOST_SAMPLED)
        # Nothing is at risk on a client that never trains, and no direction of its will be known.
        self.sample: Sequence[ClientId] = [each for each in sample if context.trains(each)] or sample

    def measure_sensitivity(self) -> float | None:
        """Measure some clients' sensitivity on the initial model, if that is wanted.

        Returns:
            Mean noise over signal power of the rounded model, 0 to 1; None where it cannot be measured.
        """
        measure = self.context.sensitivity
        if measure is None:
            return None
        asked = _some(self.context.client_ids, _MOST_MEASURED)
        if self.sensitivity is not None:
            self._take_sensitivities({client_id: measure(client_id, self.sensitivity) for client_id in asked})
        noise = [value for value in (measure(client_id, "sqnr") for client_id in asked) if value is not None]
        return fmean(noise) if noise else None

    def facts(self, client_ids: Iterable[ClientId]) -> dict[ClientId, ClientFacts]:
        """What decides over each of these clients: times, risk, and whether `qat` fits its device."""
        return {
            client_id: ClientFacts(
                ptq_seconds=self._seconds(client_id, "ptq"),
                qat_seconds=self._seconds(client_id, "qat"),
                risk=self.risk(client_id) if self.context.trains(client_id) else 0.0,
                can_qat=self.context.fits(client_id, "qat") and self.context.trains(client_id),
                fixed_seconds=self._fixed_seconds(client_id),
                num_steps=self.context.num_steps(client_id),
            )
            for client_id in client_ids
        }

    def risk(self, client_id: ClientId) -> float:
        """Divergence times relative sensitivity, >= 0."""
        return self.divergence_of(client_id) * self.sensitivity_of(client_id)

    def divergence_of(self, client_id: ClientId) -> float:
        """By the measure in use, 0 to 1; 1 for everybody without one."""
        if self.divergence is None:
            return 1.0
        if self.divergence == "updates":
            return self._update_divergence.get(client_id, self._mean_update_divergence)
        return self._label_divergence(client_id)

    def sensitivity_of(self, client_id: ClientId) -> float:
        """Relative to the mean client, whose sensitivity is 1."""
        return self._relative_sensitivity.get(client_id, 1.0)

    def described(self, client_id: ClientId, facts: ClientFacts, mode: Mode, least_work: float) -> dict[str, Any]:
        """A client in the plane of time and risk, as JSON has it.

        Args:
            client_id: The client.
            facts: Its facts.
            mode: What it would train in.
            least_work: The least share of its steps that QAT may take.
        """
        return {
            "client_id": client_id,
            "tier": self.context.tier(client_id),
            "ptq_seconds": facts.ptq_seconds,
            "qat_seconds": facts.qat_seconds,
            "least_qat_seconds": facts.seconds("qat", least_work),
            "risk": facts.risk,
            "divergence": self.divergence_of(client_id),
            "sensitivity": self.sensitivity_of(client_id),
            "can_qat": facts.can_qat,
            "mode": mode,
        }

    def learn(self, clients: Sequence["ClientRecord"]) -> str:
        """Take in what a round logged.

        Args:
            clients: One record a client of the round.

        Returns:
            Why the coarse boundary should be chosen again: a device turned out to be faster or slower than was thought
            by more than a twentieth, or the directions of half of the clients' updates are known now. Else empty.
        """
        if self.sensitivity is not None:
            self._take_sensitivities({each.client_id: each.sensitivity for each in clients})
        for each in clients:
            if each.update_divergence is not None and math.isfinite(each.update_divergence):
                self._update_divergence[each.client_id] = min(1.0, max(0.0, each.update_divergence))
        known = self._update_divergence
        if known:
            self._mean_update_divergence = fmean(known.values())
        if not self._learns_times:
            return ""
        reasons = []
        if not self._directions_are_known and 2 * sum(each in known for each in self.sample) >= len(self.sample):
            self._directions_are_known = True
            reasons.append("the directions of most clients' updates are known")
        if self._learn_times(clients):
            reasons.append("logged times differ from predicted ones")
        return " and ".join(reasons)

    def probes(self, cohort: Iterable[ClientId]) -> dict[ClientId, Mode]:
        """Clients that shall try the mode in which their tier has not been seen, at most one a tier.

        Only of tiers whose logged times belie what was stated of the device: the other mode may be mis-stated too, and
        a boundary drawn from it might never let anybody try it.

        Args:
            cohort: The round's clients; their order decides nothing.
        """
        found: dict[str, tuple[ClientId, Mode]] = {}
        for client_id in sorted(cohort, key=str) if self.ratios else ():
            tier = self.context.tier(client_id)
            seen = {mode: ratio for (of, mode), ratio in self.ratios.items() if of == tier}
            unseen = [mode for mode in _TRAINED if mode not in seen]
            is_belied = any(abs(ratio - 1) > _NOTABLE for ratio in seen.values())
            can_try = bool(unseen) and self.context.fits(client_id, unseen[0]) and self.context.trains(client_id)
            if tier not in found and is_belied and can_try:
                found[tier] = client_id, unseen[0]
        return dict(found.values())

    def state_dict(self) -> dict[str, Any]:
        """What is known, as plain values; client ids keep their kind in pairs."""
        return {
            "times": [[tier, mode, *sums] for (tier, mode), sums in self._sums.items()],
            "acted_on": [[tier, mode, ratio] for (tier, mode), ratio in self._acted_on.items()],
            "directions_are_known": self._directions_are_known,
            "sensitivity": [list(pair) for pair in self._relative_sensitivity.items()],
            "update_divergence": [list(pair) for pair in self._update_divergence.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._sums = {(tier, mode): (logged, predicted) for tier, mode, logged, predicted in state["times"]}
        self.ratios = {key: _ratio(*sums) for key, sums in self._sums.items()}
        self._acted_on = {(tier, mode): ratio for tier, mode, ratio in state["acted_on"]}
        self._directions_are_known = state["directions_are_known"]
        self._relative_sensitivity = {client_id: value for client_id, value in state["sensitivity"]}
        self._update_divergence = {client_id: value for client_id, value in state["update_divergence"]}
        if self._update_divergence:
            self._mean_update_divergence = fmean(self._update_divergence.values())

    def _seconds(self, client_id: ClientId, mode: Mode) -> float:
        seconds = self._predicted(client_id, mode)
        ratio = self.ratios.get((self.context.tier(client_id), mode), 1.0) if self.ratios else 1.0
        if ratio != 1.0:
            seconds += (ratio - 1.0) * self._predicted_compute(client_id, mode)
        return seconds + self._analysis_seconds(client_id)

    def _analysis_seconds(self, client_id: ClientId) -> float:
        return 0.0 if self.sensitivity is None else self.context.analysis_seconds(client_id)

    def _predicted_compute(self, client_id: ClientId, mode: Mode) -> float:
        return max(0.0, self._predicted(client_id, mode) - self.context.link_seconds(client_id))

    def _predicted_work(self, client: "ClientRecord") -> float:
        """Seconds of what it computed; a client may be asked for fewer steps."""
        whole = self._predicted_compute(client.client_id, client.mode)
        beside = min(whole, self.context.calibration_seconds(client.client_id, client.mode))
        return beside + (whole - beside) * min(1.0, client.num_steps / max(1, self.context.num_steps(client.client_id)))

    def _fixed_seconds(self, client_id: ClientId) -> float:
        """What fewer steps do not save, in the mode in which that is more."""
        beside = max(self.context.calibration_seconds(client_id, mode) for mode in _TRAINED)
        return self.context.link_seconds(client_id) + beside + self._analysis_seconds(client_id)

    def _measured_divergence(self, client_id: ClientId) -> float:
        assert self.context.divergence is not None
        return self.context.divergence(client_id, self.divergence)  # type: ignore[arg-type]  # a measure of labels here

    def _take_sensitivities(self, measured: Mapping[ClientId, float | None]) -> None:
        """Keep sensitivities relative to their mean: the model changes, and with it what everybody measures."""
        known = {each: value for each, value in measured.items() if value is not None and math.isfinite(value)}
        mean = fmean(known.values()) if known else 0.0
        if mean > 0:
            # A small cohort may hold sensitive clients only: its mean is set to what these were thought to have before.
            level = fmean(self.sensitivity_of(each) for each in known)
            self._relative_sensitivity |= {each: level * value / mean for each, value in known.items()}

    def _learn_times(self, clients: Sequence["ClientRecord"]) -> bool:
        """Logged over predicted seconds of the local fits, summed over the run, a number per tier and mode."""
        for each in clients:
            predicted = self._predicted_work(each)
            # Of a late client the server knows only that it is late, and an idle one computed nothing.
            if each.status not in ("late", "idle") and predicted > 0 and 0 < each.compute_seconds < math.inf:
                key = self.context.tier(each.client_id), each.mode
                logged, expected = self._sums.get(key, (0.0, 0.0))
                self._sums[key] = logged + each.compute_seconds, expected + predicted
                self.ratios[key] = _ratio(*self._sums[key])
        thought = {key: self._acted_on.get(key, 1.0) for key in self.ratios}
        moved = any(abs(now - thought[key]) > _NOTABLE * thought[key] for key, now in self.ratios.items())
        if moved:
            self._acted_on = dict(self.ratios)
        return moved


def _some(client_ids: Sequence[ClientId], most: int) -> list[ClientId]:
    """Those who stand for all."""
    if len(client_ids) > FEW:
        return sample_of(client_ids, most)
    return list(client_ids[:: math.ceil(len(client_ids) / most)])


def _ratio(logged: float, predicted: float) -> float:
    """Exactly 1 where they are the same but for rounding."""
    ratio = logged / predicted
    return ratio if abs(ratio - 1) > _SAME else 1.0
