"""The hybrid allocator: a coarse boundary before round 1, refined while training."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from typing_extensions import override

from fedhq_lightning.allocation.boundary import (
    Allotment,
    Boundary,
    ClientFacts,
    allot,
    is_number,
    risk_level,
    round_seconds,
)
from fedhq_lightning.allocation.briefing import Briefing, start_in_brief, tier_briefs
from fedhq_lightning.allocation.coarse import CoarseChoice, choose_boundary, start_of_qat
from fedhq_lightning.allocation.explanation import explain, explain_outlook, explain_start
from fedhq_lightning.allocation.fine import FineAdjustment
from fedhq_lightning.allocation.known_clients import ClientKnowledge, Divergence
from fedhq_lightning.allocation.price import time_saved
from fedhq_lightning.allocation.protocol import AllocationContext, Allocator
from fedhq_lightning.allocation.rounding_cost import FEWEST, RoundingCost
from fedhq_lightning.allocation.study import BoundaryStudy, Trial
from fedhq_lightning.allocation.warm_start import Earlier, learned_before, value_of
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.run.run_names import run_meant
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.paths import expand
from fedhq_lightning.types import ClientId, Plan

if TYPE_CHECKING:
    from fedhq_lightning.devices import FleetSpec
    from fedhq_lightning.risk.sensitivity import SensitivityMeasure
    from fedhq_lightning.run.records import RoundRecord

_MEASURES = {"divergence": get_args(Divergence), "sensitivity": ("sqnr", "loss")}
_STATE = {"knowledge", "choice", "is_coarse", "fine", "rounding", "was_seen", "history", "noise", "explanation"}
_NUMBERS = ("trial", "incumbent", "judged")
_MOST_ROUNDS_PREVIEWED = 50


class HybridAllocator(Allocator):
    """Who trains in `ptq` and who in `qat`, and who takes fewer steps, by a boundary in the plane of time and risk.

    Before round 1 the boundary comes from a hardware analysis (how long each client takes in each mode) and a data
    analysis (how far its data are from everybody's, and how much the scheme hurts the model on them): rounds last as
    long as they would in `ptq`, and slow clients take as many steps as that allows; where no round waits, every client
    as many as its own time in `ptq` allows. While the run goes on, `qat` begins once rounding is seen to cost; an
    Optuna study tries boundaries for some rounds each, of shorter rounds above all, and one that makes more progress
    per virtual second takes over; and devices that turn out faster or slower than predicted are corrected.

    This is our reading of FedHQ (arXiv 2505.11982), whose abstract alone was at hand.

    Args:
        fine: Whether to refine while training. False keeps the coarse boundary, and begins `qat` unasked.
        boundary: `slack` and `share` to start with instead of the coarse ones (see `Boundary`).
        slowdown: How much longer than in `ptq` rounds may be made, >= 0: 0.1 allows a tenth.
        least_work: Least share of its local steps that a client is asked for, above 0 and up to 1. With 1 nobody takes
            fewer, and rounds are not shortened.
        qat_from: Share of the rounds in which everybody trains in `ptq` before the boundary decides, 0 to 1. None: by
            how much rounding destroys (see `start_of_qat`), and not before rounding is seen to cost (see
            `RoundingCost`).
        divergence: `total_variation`, `hellinger` or `jensen_shannon` of labels; `updates`, from the directions of the
            clients' updates, needs no labels; `auto` is total variation where labels are told, else `updates`; None
            leaves data out.
        sensitivity: `sqnr` (noise over signal power of the rounded model's output) or `loss` (relative growth of the
            loss), measured by each client on one of its batches; None leaves it out.
        window: Rounds that a boundary is tried for, >= 1; more where no round waits, until its own updates come.
        warm_start: Earlier runs: run directories or names, offline W&B runs, W&B's `entity/project/run`. The new one
            starts with all their trials and the boundary that the last of them ended with, and where rounding was seen
            to cost in that one, `qat` does not wait.
        fleet: Devices as they are stated, where that differs from the run's fleet.

    Raises:
        ConfigurationError: An unknown measure; a number out of range.

    Attributes:
        explanation: Why the boundary is what it is, in one paragraph; empty before `begin`.
    """

    def __init__(
        self,
        fine: bool = True,
        boundary: Mapping[str, float] | None = None,
        divergence: str | None = "auto",
        sensitivity: str | None = None,
        window: int = 2,
        slowdown: float = 0.0,
        least_work: float = 0.5,
        qat_from: float | None = None,
        warm_start: Sequence[str] | str | None = None,
        fleet: "FleetSpec | None" = None,
    ) -> None:
        for name, value, allowed in (
            ("divergence", divergence, ("auto", *_MEASURES["divergence"])),
            ("sensitivity", sensitivity, _MEASURES["sensitivity"]),
        ):
            if value is not None and value not in allowed:
                raise ConfigurationError(
                    f"HybridAllocator: {name}={value!r}; allowed are {', '.join(allowed)} and null"
                    f"{nearest(str(value), allowed)}"
                )
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ConfigurationError(f"HybridAllocator: window {window!r} must be a whole number of rounds, 1 or more")
        if not is_number(slowdown) or not 0 <= slowdown < math.inf:
            raise ConfigurationError(f"HybridAllocator: slowdown {slowdown!r} must be a number, 0 or more")
        if not is_number(least_work) or not 0 < least_work <= 1:
            raise ConfigurationError(f"HybridAllocator: least_work {least_work!r} must be a number above 0, up to 1")
        if qat_from is not None and not (is_number(qat_from) and 0 <= qat_from <= 1):
            raise ConfigurationError(f"HybridAllocator: qat_from {qat_from!r} must be a number from 0 to 1, or null")
        if boundary is not None and set(boundary) != {"slack", "share"}:
            raise ConfigurationError(
                f"HybridAllocator: boundary has {', '.join(sorted(boundary)) or 'nothing'}; it needs slack and share"
            )
        self.fine = fine
        self.boundary = None if boundary is None else dict(boundary)
        self.divergence = divergence
        self.sensitivity: SensitivityMeasure | None = sensitivity  # type: ignore[assignment]  # checked above
        self.window = window
        self.slowdown = slowdown
        self.least_work = least_work
        self.qat_from = qat_from
        runs = [warm_start] if isinstance(warm_start, str) else warm_start or []
        self.warm_start = [run_meant(expand(run, "HybridAllocator: warm_start")) for run in runs]
        self.fleet = fleet
        self.explanation = ""
        self.wanted_sensitivity = self.sensitivity
        self.wants_label_divergence = divergence not in (None, "updates")
        self._given = None if boundary is None else Boundary(**boundary)
        self._knowledge: ClientKnowledge | None = None
        self._usual_seconds = 0.0

    def begin(self, context: AllocationContext) -> None:
        """Analyse, choose the coarse boundary, take up earlier runs.

        Raises:
            ConfigurationError: A label measure for data that tell no labels, or a client without any; an earlier run
                that cannot be read or logged no boundaries.
        """
        divergence = self.divergence
        if divergence == "auto":
            divergence = "updates" if context.divergence is None else "total_variation"
        self.wants_update_divergence = divergence == "updates"
        self._context = context
        self._knowledge = ClientKnowledge(
            context,
            divergence,  # type: ignore[arg-type]  # one of the measures by now
            self.sensitivity,
            self.fleet,
            learns_times=self.fine,
        )
        self._noise = self._knowledge.measure_sensitivity()
        self._rounds_in_ptq = self._rounds_before_qat(context.max_rounds)
        sign = 1.0 if context.monitor_mode == "max" else -1.0
        self._rounding = RoundingCost(sign)
        earlier = self._learned_before(sign)
        self._rounding.is_seen = self._was_seen = earlier is not None and earlier.rounding_costs
        start = self._given or (earlier.last if earlier else None)
        self._is_coarse = start is None
        self._choice = self._choose(start)
        self._history: list[dict[str, Any]] = []
        self._written: Sequence[Trial] = ()
        trials = earlier.trials if earlier else []
        slack = self._choice.boundary.slack
        slacks = min(self.least_work - 1, slack), max(self.slowdown, slack)
        study = BoundaryStudy(context.seed, slacks, trials)
        study.add(self._choice.boundary, value_of(self._choice.boundary, trials))
        self._fine = FineAdjustment(study, self._rounds_to_a_window(), context.max_rounds, sign, self._time_saved)
        self.explanation = explain(self._knowledge, self._choice, self.least_work, self._origin(earlier))
        self.explanation += self._start_in_words()
        window = self._rounds_to_a_window()
        self.explanation += explain_outlook(self._choice.in_qat, context.max_rounds, window, len(trials))

    @property
    @override
    def briefing(self) -> Briefing | None:
        """What was chosen, in brief; None before `begin`."""
        if self._knowledge is None:
            return None
        facts = self._knowledge.facts(self._knowledge.sample)
        tiers = {client_id: self._context.tier(client_id) for client_id in facts}
        return Briefing(
            tier_briefs(facts, tiers, self._allot(self._choice.boundary, facts).modes),
            self._choice.seconds,
            start_in_brief(self._rounds_in_ptq, self._waits_for_proof() and not self._rounding.is_seen),
            self._choice.in_qat,
            self._context.rounds_wait,
        )

    def propose(self, round_number: int, cohort: Sequence[ClientId]) -> Plan:
        """Modes by the boundary on trial, or by the incumbent's."""
        if self._knowledge is None:
            raise RuntimeError("HybridAllocator.propose before begin: the trainer calls begin(context) once")
        trial = self._fine.current
        facts, level = self._knowledge.facts(cohort), self._level(trial.boundary)
        begun = self._has_begun(round_number)
        allotment = usual = self._allot(trial.boundary, facts, begun)
        if trial != self._fine.incumbent:
            usual = self._allot(self._fine.incumbent.boundary, facts, begun)
        self._usual_seconds = round_seconds(facts, usual, self._context.round_deadline)
        probes = self._knowledge.probes(cohort) if begun else {}
        work = {client_id: share for client_id, share in allotment.work.items() if client_id not in probes}
        steps = sum(each.num_steps for each in facts.values())
        taken = sum(work.get(client_id, 1.0) * each.num_steps for client_id, each in facts.items())
        logged = {
            "slack": trial.boundary.slack,
            "share": trial.boundary.share,
            "seconds": allotment.seconds,
            "risk": level,
            "work": taken / steps if steps else 1.0,
            "trial": float(trial.number),
            "incumbent": float(self._fine.incumbent.number),
        } | self._fine.take_verdict()
        if self._rounding.mean is not None:
            logged["rounding_cost"] = self._rounding.mean
        whole = {name: int(value) if name in _NUMBERS else value for name, value in logged.items()}
        reason = self._why_not_yet(round_number) + self._fine.reason
        self._history.append({"round": round_number, "qat": begun, **whole, "reason": reason})
        tried = "".join(
            f"; client {each} tries {mode}, in which its tier is not known" for each, mode in probes.items()
        )
        return Plan(allotment.modes | probes, reason + tried, logged, work)

    def observe(self, result: "RoundRecord") -> None:
        """Learn devices' times and clients' risk, and judge the boundary on trial."""
        assert self._knowledge is not None
        if result.round > 0:
            why = self._knowledge.learn(result.clients)
            if why and self._is_coarse:
                self._choice = self._choose(None)
                self._fine.restart(self._choice.boundary, why)
        had_begun = self._has_begun(result.round)
        if result.round > 0:  # rounding hurts no model that has learned nothing
            counts = result.round >= self._rounds_in_ptq
            self._rounding.observe(result.metric_fp, result.metric_quantized, counts)
        if self.fine:
            self._fine.observe(result.round, self._length(result), result.monitored)
            if result.round > 0 and self._has_begun(result.round + 1) and not had_begun:
                self._fine.begin_anew("QAT has begun")

    def _length(self, result: "RoundRecord") -> float:
        """How long a round lasted, in rounds of the same cohort under the incumbent.

        Whom the sampler drew, what time passed until they came back, and evaluation on clients is no boundary's merit
        or fault. Where no round waits, its length says nothing of those who begin in it.
        """
        seconds = result.virtual_seconds - result.wait_seconds
        seconds -= 0.0 if result.evaluation is None else result.evaluation.virtual_seconds
        usual = self._usual_seconds if self._context.rounds_wait and result.round > 0 else 0.0
        return seconds / usual if usual > 0 else seconds

    def write(self, folder: Path) -> None:
        """`allocation.json`, and `study.log`, an Optuna journal, where there is a study."""
        content = {"explanation": self.explanation, "clients": self._map(), "boundaries": self._history}
        write_atomically(folder / "allocation.json", json.dumps(content, allow_nan=False) + "\n")
        if self.fine and self._written != self._fine.trials:
            self._fine.write(folder / "study.log")
            self._written = self._fine.trials

    def state_dict(self) -> dict[str, Any]:
        """What was learned, the study, and the boundaries so far."""
        assert self._knowledge is not None
        return {
            "knowledge": self._knowledge.state_dict(),
            "choice": {**asdict(self._choice)},
            "is_coarse": self._is_coarse,
            "fine": self._fine.state_dict(),
            "rounding": self._rounding.state_dict(),
            "was_seen": self._was_seen,
            "history": [dict(each) for each in self._history],
            "noise": self._noise,
            "explanation": self.explanation,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was written.

        Raises:
            ConfigurationError: It is another allocator's, or of another version of this package.
        """
        if set(state) != _STATE or self._knowledge is None:
            raise ConfigurationError(
                f"HybridAllocator needs {', '.join(sorted(_STATE))}, but the checkpoint holds "
                f"{', '.join(sorted(state)) or 'nothing'}; resume with the allocator that the run began with"
            )
        try:
            self._knowledge.load_state_dict(state["knowledge"])
            self._choice = CoarseChoice(**{**state["choice"], "boundary": Boundary(**state["choice"]["boundary"])})
            self._is_coarse = state["is_coarse"]
            self._fine.load_state_dict(state["fine"])
            self._rounding.load_state_dict(state["rounding"])
            self._was_seen = state["was_seen"]
            self._history = [dict(each) for each in state["history"]]
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"HybridAllocator: the checkpoint is of another version of fedhq_lightning ({error}); resume with the "
                "version that wrote it, or start a new run from its weights"
            ) from error
        self._noise, self.explanation = state["noise"], state["explanation"]
        self._rounds_in_ptq = self._rounds_before_qat(self._context.max_rounds)
        start = self._start_in_words()
        if start not in self.explanation:
            self.explanation += f" Made {self._context.max_rounds} rounds long later on.{start}"

    def _start_in_words(self) -> str:
        is_given, waits = self.qat_from is not None, self._waits_for_proof()
        return explain_start(self._noise, self._rounds_in_ptq, is_given, waits, self._was_seen)

    def _has_begun(self, round_number: int) -> bool:
        """Whether the boundary decides in this round; before, everybody trains in ptq."""
        if round_number <= self._rounds_in_ptq:
            return False
        if not self._waits_for_proof() or self._rounding.is_seen:
            return True
        # Where the first evaluation does not measure both models, none will.
        return not self._rounding.is_known and round_number > self._context.eval_every_n_rounds

    def _why_not_yet(self, round_number: int) -> str:
        """Why everybody trains in ptq still, to go before the boundary's reason; empty once qat has begun."""
        if self._has_begun(round_number):
            return ""
        if round_number > self._rounds_in_ptq:
            return "PTQ for everybody, because rounding is not seen to cost anything; "
        return f"PTQ for everybody up to round {self._rounds_in_ptq}; "

    def _waits_for_proof(self) -> bool:
        """Whether rounding must be seen to cost before qat begins: not in runs too short to see anything."""
        context = self._context
        return self.fine and self.qat_from is None and context.max_rounds > FEWEST * context.eval_every_n_rounds

    def _choose(self, given: Boundary | None) -> CoarseChoice:
        assert self._knowledge is not None
        context = self._context
        cohorts = [list(self._knowledge.sample)]
        if context.cohort is not None:
            cohorts = [
                list(context.cohort(number + 1)) for number in range(min(context.max_rounds, _MOST_ROUNDS_PREVIEWED))
            ]
        facts = self._knowledge.facts({client_id: None for cohort in cohorts for client_id in cohort})
        limits = self.slowdown, self.least_work, context.round_deadline
        return choose_boundary(cohorts, facts, self._risks(), *limits, given, context.rounds_wait)

    def _allot(self, boundary: Boundary, facts: Mapping[ClientId, ClientFacts], qat: bool = True) -> Allotment:
        how = self.least_work, self._context.round_deadline, qat, self._context.rounds_wait
        return allot(boundary, facts, self._level(boundary), *how)

    def _origin(self, earlier: Earlier | None) -> str:
        """Where a boundary that is not coarse comes from; empty for one that is."""
        if self._given is not None:
            return "The boundary was given."
        return f"The boundary is the one that {self.warm_start[-1]} ended with." if earlier else ""

    def _rounds_before_qat(self, max_rounds: int) -> int:
        start = start_of_qat(self._noise) if self.qat_from is None else self.qat_from
        return math.floor(start * max_rounds + 0.5)

    def _rounds_to_a_window(self) -> int | None:
        """A window ends with an evaluation, and at least half of its updates began in it."""
        every, least = self._context.eval_every_n_rounds, 2 * (self._context.rounds_to_arrive - 1)
        return -(-max(self.window, least) // every) * every if self.fine else None

    def _risks(self) -> list[float]:
        assert self._knowledge is not None
        return [self._knowledge.risk(client_id) for client_id in self._knowledge.sample]

    def _time_saved(self, challenger: Boundary, incumbent: Boundary, rounds: range) -> float | None:
        """See `time_saved`, in some rounds; a sample stands for cohorts that are not known."""
        assert self._knowledge is not None
        cohort, begun = self._context.cohort, self._has_begun(rounds.start)
        cohorts = [self._knowledge.sample] if cohort is None else [cohort(number) for number in rounds]
        return time_saved(
            challenger,
            incumbent,
            map(self._knowledge.facts, cohorts),
            lambda boundary, facts: self._allot(boundary, facts, begun),
            self.slowdown,
            self._context.round_deadline,
            self._context.rounds_wait,
        )

    def _level(self, boundary: Boundary) -> float:
        return risk_level(self._risks(), boundary.share)

    def _map(self) -> list[dict[str, Any]]:
        """The sampled clients in the plane of time and risk, with their modes as if they were one cohort."""
        assert self._knowledge is not None
        facts = self._knowledge.facts(self._knowledge.sample)
        modes = self._allot(self._fine.incumbent.boundary, facts).modes
        return [self._knowledge.described(each, facts[each], modes[each], self.least_work) for each in facts]

    def _learned_before(self, sign: float) -> Earlier | None:
        if not self.fine or not self.warm_start or self._context.resumes:
            return None
        return learned_before(self.warm_start, sign)
