import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.allocation import HybridAllocator
from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.federated.measured_seconds import MeasuredSeconds
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.testing.made_rounds import made_context, made_record
from fedhq_lightning.types import Plan

CONTEXT = made_context(["a", "b"], 2)


def record_of(round_number: int, client_id: str, **changes: Any) -> ClientRecord:
    (record,) = made_record(round_number, Plan({client_id: "ptq"}), CONTEXT).clients
    return replace(record, **changes)


def write_run(folder: Path, changes: Mapping[tuple[int, str], Mapping[str, Any]] | None = None) -> Path:
    """Two rounds of two clients, whose fits took 11, 12, 21 and 22 seconds."""
    lines = []
    for number in (1, 2):
        clients = tuple(
            record_of(number, each, **{"fit_wall_seconds": 10.0 * number + place} | dict(changed))
            for place, each in enumerate("ab", start=1)
            for changed in [(changes or {}).get((number, each), {})]
        )
        lines.append(json.dumps(made_record(number, Plan({}), CONTEXT, clients=clients).to_json()) + "\n")
    (folder / "rounds.jsonl").write_text("".join(lines))
    return folder


def test_what_was_measured_takes_the_place_of_what_the_clock_says() -> None:
    measured = MeasuredSeconds.of(True, 1)
    assert measured is not None
    told = record_of(1, "a", fit_wall_seconds=0.3, analysis_seconds=0.2)
    assert measured.put_into(told) == replace(told, compute_seconds=0.3)
    nothing = replace(told, num_steps=0)
    assert measured.put_into(nothing) == nothing
    assert MeasuredSeconds.of(False, 1) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_no_time_is_not_measured(seconds: float) -> None:
    measured = MeasuredSeconds.of(True, 1)
    assert measured is not None
    told = record_of(1, "a", fit_wall_seconds=seconds)
    assert measured.put_into(told) == told, "the clock's seconds stand"


@pytest.mark.parametrize("compute_seconds", [0.0, 1e-320])
def test_a_client_that_took_no_time_does_not_end_the_run(compute_seconds: float) -> None:
    allocator = HybridAllocator(qat_from=0.0, window=1)
    allocator.begin(CONTEXT)
    for number in (1, 2, 3):
        record = made_record(number, allocator.propose(number, ["a", "b"]), CONTEXT)
        none = tuple(replace(each, compute_seconds=compute_seconds) for each in record.clients)
        allocator.observe(replace(record, clients=none, virtual_seconds=compute_seconds))


def test_what_a_client_measures_for_the_allocator_is_counted_once() -> None:
    only_ptq = {"fits": lambda client_id, mode: mode == "ptq"}
    context = made_context(["a", "b"], 9, analysis_seconds=lambda client_id: 5.0, **only_ptq)
    allocator = HybridAllocator(sensitivity="loss", boundary={"slack": 0.0, "share": 0.0})
    allocator.begin(context)
    measured = MeasuredSeconds.of(True, 9)
    assert measured is not None
    for number in (1, 2, 3):
        plan = allocator.propose(number, ["a", "b"])
        record = made_record(number, plan, context)
        told = [replace(each, analysis_seconds=5.0, fit_wall_seconds=30.0) for each in record.clients]
        clients = tuple(map(measured.put_into, told))
        assert {each.virtual_seconds for each in clients} == {35.0}
        allocator.observe(replace(record, clients=clients, virtual_seconds=35.0))
    assert allocator.propose(4, ["a", "b"]).logged["seconds"] == pytest.approx(35.0)


def test_a_runs_seconds_are_replayed_round_by_round(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    replayed = MeasuredSeconds.of(write_run(tmp_path), 2)
    assert replayed is not None
    seconds = [replayed.put_into(record_of(number, each)).compute_seconds for number in (1, 2) for each in "ab"]
    assert seconds == [11.0, 12.0, 21.0, 22.0]
    assert not recwarn.list
    with pytest.raises(RunError, match="has no client c in round 1; replay it with its own recipe"):
        replayed.put_into(replace(record_of(1, "a"), client_id="c"))


def test_a_run_of_fewer_rounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="that run has 2 rounds, max_rounds is 3; take as many at most"):
        MeasuredSeconds.of(write_run(tmp_path), 3)


def test_a_run_that_lost_updates_says_so(tmp_path: Path) -> None:
    lost = write_run(tmp_path, {(2, "b"): {"status": "late", "num_steps": 0}})
    with pytest.warns(UserWarning, match="the update of client b was left out in round 2"):
        replayed = MeasuredSeconds.of(lost, 2)
    assert replayed is not None
    here = record_of(2, "b")
    assert replayed.put_into(here) == here, "the clock's seconds stand"
