"""What an allocator has to beat: QAT wherever it is free, and QAT at random in the same measure."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

from typing_extensions import TypedDict

from fedhq_lightning.allocation.protocol import AllocationContext, Allocator
from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.run.records import MOST_LINE_BYTES
from fedhq_lightning.support.paths import expand
from fedhq_lightning.support.typed_json import parse_json
from fedhq_lightning.support.untrusted_files import read_bytes, read_lines
from fedhq_lightning.types import ClientId, Mode, Plan

_MOST_BYTES = 2**28
"""Of a cell, which has 20 bytes for every client and round."""
Per: TypeAlias = Literal["total", "tier"]
"""Where the number of QAT fits is matched: over the whole run, or in every round and tier."""


class FreeQatAllocator(Allocator):
    """QAT for whom it costs no round time: `t_qat <= max over the cohort of t_ptq`, where the device holds it.

    Times are virtual seconds as the hardware analysis predicts them; a round deadline ends the wait for the slowest.
    """

    looks_at_the_slowest = True

    looks_at_max_rounds = False

    def __init__(self) -> None:
        self._context: AllocationContext | None = None

    def begin(self, context: AllocationContext) -> None:
        """Take in the predicted times."""
        self._context = context

    def propose(self, round_number: int, cohort: Sequence[ClientId]) -> Plan:
        """QAT up to the time that the slowest client of this cohort needs for PTQ."""
        context = self._context
        if context is None:
            raise RuntimeError("FreeQatAllocator.propose before begin: the trainer calls begin(context) once")
        seconds = max((context.client_seconds(client_id, "ptq") for client_id in cohort), default=0.0)
        if context.round_deadline is not None:
            seconds = min(seconds, context.round_deadline)

        def mode(client_id: ClientId) -> Mode:
            is_free = context.client_seconds(client_id, "qat") <= seconds
            return "qat" if is_free and context.fits(client_id, "qat") else "ptq"

        return Plan(
            {client_id: mode(client_id) for client_id in cohort},
            reason=f"QAT for whom it takes no longer than the slowest client's PTQ, {seconds:.3g} virtual seconds",
            logged={"seconds": seconds},
        )


class MatchedRandomAllocator(Allocator):
    """QAT at random, for as many local fits as in another run; tells what choosing, not counting, is worth.

    The draw goes over the fits of the other run, whose cohorts must be the same: the same clients, seed and number of
    rounds. The run's seed decides it, and devices that cannot hold QAT are left out of it.

    Args:
        reference: The other run's directory (its `rounds.jsonl` is read), or a cell that `fedhq compare` has kept.
        per: "total": as many QAT fits over the whole run; "tier": as many in every round on every device tier.

    Raises:
        ConfigurationError: An unknown choice.
    """

    looks_at_max_rounds = False

    def __init__(self, reference: str, per: Per = "total") -> None:
        if per not in get_args(Per):
            raise ConfigurationError(
                f"MatchedRandomAllocator: per={per!r}; allowed are {', '.join(get_args(Per))}"
                f"{nearest(str(per), get_args(Per))}"
            )
        self.reference = expand(reference, "MatchedRandomAllocator: reference")
        self.per = per
        self._modes: dict[int, dict[str, Mode]] | None = None

    def begin(self, context: AllocationContext) -> None:
        """Draw the fits.

        Raises:
            ConfigurationError: The reference is missing or damaged, lacks rounds, or had other cohorts.
        """
        rounds = read_fits(Path(self.reference))
        if context.cohort is not None:
            for round_number in range(1, context.max_rounds + 1):
                self._check_cohort(rounds, round_number, context.cohort(round_number), exactly=True)
        groups: dict[tuple[object, ...], list[tuple[int, Fit]]] = {}
        for round_number, fits in rounds.items():
            for fit in fits.values():
                group = () if self.per == "total" else (round_number, fit.tier)
                groups.setdefault(group, []).append((round_number, fit))
        modes: dict[int, dict[str, Mode]] = {number: dict.fromkeys(fits, "ptq") for number, fits in rounds.items()}
        for members in groups.values():
            count = sum(fit.mode == "qat" for _, fit in members)
            able = [(number, fit) for number, fit in members if context.fits(fit.client_id, "qat")]
            able.sort(key=lambda member: _hash(context.seed, member[0], member[1].client_id))
            for number, fit in able[:count]:
                modes[number][str(fit.client_id)] = "qat"
        self._modes = modes

    def propose(self, round_number: int, cohort: Sequence[ClientId]) -> Plan:
        """The modes drawn for this round.

        Raises:
            ConfigurationError: The reference had other clients in this round.
        """
        if self._modes is None:
            raise RuntimeError("MatchedRandomAllocator.propose before begin: the trainer calls begin(context) once")
        self._check_cohort(self._modes, round_number, cohort, exactly=False)
        modes = self._modes.get(round_number, {})
        matched = "in all" if self.per == "total" else "in every round and tier"
        return Plan(
            {client_id: modes[str(client_id)] for client_id in cohort},
            reason=f"QAT at random, for as many fits {matched} as in {Path(self.reference).name}",
        )

    def _check_cohort(
        self, rounds: Mapping[int, Mapping[str, object]], round_number: int, cohort: Sequence[ClientId], exactly: bool
    ) -> None:
        start = f"MatchedRandomAllocator: reference {self.reference}"
        if round_number not in rounds:
            raise ConfigurationError(
                f"{start} has no round {round_number}, only {len(rounds)} rounds; give a run that was as long as this "
                "one"
            )
        given, known = {str(client_id) for client_id in cohort}, set(rounds[round_number])
        if given - known or (exactly and given != known):
            raise ConfigurationError(
                f"{start} had other clients in round {round_number}: {_some(known - given)} there, "
                f"{_some(given - known)} here; give a run of the same clients, seed and cohort size (a fleet that is "
                "not always available has cohorts that depend on virtual time, so they cannot be matched)"
            )


class Fit(NamedTuple):
    """One client in one round of the reference."""

    client_id: ClientId
    tier: str
    mode: str


def read_fits(reference: Path) -> dict[int, dict[str, Fit]]:
    """Who trained how in another run.

    Args:
        reference: A run directory, or a cell's file.

    Returns:
        Round, from 1, to client id as text, to what it did.

    Raises:
        ConfigurationError: Missing, damaged, or a cell that keeps no modes.
    """
    file = reference / "rounds.jsonl" if reference.is_dir() else reference
    if not file.is_file():
        raise ConfigurationError(
            f"MatchedRandomAllocator: reference {file}: no such file; give the directory of a run, it holds "
            "rounds.jsonl"
        )
    try:
        found = _of_run(file) if file.suffix == ".jsonl" else _of_cell(file)
    except (ConfigurationError, IndexError) as error:
        raise ConfigurationError(f"MatchedRandomAllocator: reference {file} is damaged: {error}") from error
    if not any(found.values()):
        raise ConfigurationError(
            f"MatchedRandomAllocator: reference {file} tells of no client's mode; give the directory of a run"
        )
    return {number: {str(fit.client_id): fit for fit in fits} for number, fits in found.items()}


def _of_run(file: Path) -> dict[int, list[Fit]]:
    found: dict[int, list[Fit]] = {}
    for line in read_lines(file, MOST_LINE_BYTES):
        # A line without its end is one that a killed run left unfinished.
        if line.endswith(b"\n") and (record := parse_json(line, _Round))["round"] > 0:
            found[record["round"]] = [Fit(each["client_id"], each["tier"], each["mode"]) for each in record["clients"]]
    return found


class _Client(TypedDict):
    client_id: ClientId
    tier: str
    mode: str


class _Round(TypedDict):
    round: int
    clients: list[_Client]


class _Cell(TypedDict, total=False):
    tiers: list[str]
    clients: list[list[tuple[ClientId, int, str]]]


def _of_cell(file: Path) -> dict[int, list[Fit]]:
    cell = parse_json(read_bytes(file, _MOST_BYTES), _Cell)
    tiers = cell.get("tiers", [])
    return {
        round_number: [Fit(client_id, tiers[tier], mode) for client_id, tier, mode in clients]
        for round_number, clients in enumerate(cell.get("clients", []), start=1)
    }


def _some(client_ids: set[str]) -> str:
    shown = ", ".join(sorted(client_ids)[:3])
    return f"{shown} and {len(client_ids) - 3} more" if len(client_ids) > 3 else shown or "nobody else"


def _hash(seed: int, round_number: int, client_id: ClientId) -> int:
    """64 bits of (seed, round, client), the same on every machine."""
    digest = blake2b(f"matched/{seed}/{round_number}/{client_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
