"""The benchmark of many clients: what its tables say, and that its fit finds the weights that made the values."""

from dataclasses import replace

import many_clients
import numpy as np
import pytest
from many_clients import Case

FOUND = {"first_after": 0.5, "round": 0.2, "least": 0.1, "most": 0.4, "peak_mib": 500.0, "checkpoint_kib": 40.0}


def test_memory_is_told_beside_that_of_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(case: Case) -> dict[str, float]:
        return FOUND | {"peak_mib": 500.0 if case.registered == 1000 else 505.0}

    monkeypatch.setattr(many_clients, "measured", measured)
    lines = many_clients.registered_table(Case(), [1000, 10**6]).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == ["1,000", "1,000,000"] * 2
    assert [line.split(" | ")[4] for line in lines] == ["500 (1.000)", "505 (1.010)"] * 2


def test_the_fit_finds_the_weights() -> None:
    weights = np.array([0.1, 1e-7, 2e-2, 3e-7, 4e-4])
    cases = [Case(cohort=c, hidden=h, processes=p) for c, h, p in many_clients.FITTED]
    terms = np.array([many_clients._terms(case) for case in cases])
    assert many_clients.nonnegative_fit(terms, terms @ weights) == pytest.approx(weights, rel=1e-6)


def test_the_model_is_held_against_a_case_outside_of_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(case: Case) -> dict[str, float]:
        share = case.cohort / case.processes
        seconds = 0.1 + 1e-7 * case.values + share * (0.02 + 3e-7 * case.values)
        seconds += 4e-4 * share * (case.processes > 1)
        more = 2.0 if (case.cohort, case.hidden, case.processes) == many_clients.HELD_OUT else 1.0
        told = {
            "processor": more * seconds,
            "peak_mib": 500 + 2e-5 * case.values,
            "plan_us": 50.0,
            "record_bytes": 900.0,
            "record_us": 60.0,
        }
        return FOUND | told

    monkeypatch.setattr(many_clients, "measured", measured)
    text = many_clients.model_text(replace(Case(), registered=10**6), "the command")
    rows = [line for line in text.splitlines() if line.endswith(("fitted |", "outside |"))]
    assert len(rows) == len(many_clients.FITTED) + 1
    assert {row.split(" | ")[5] for row in rows[:-1]} <= {"+0%", "-0%"}
    assert rows[-1].split(" | ")[5] == "-50%"
    assert "500 MiB + 20 MiB per million values" in text
    assert "0.1 + 1e-07 v + c/P (0.02 + 3e-07 v), and 0.0004 c/P more where two" in text
    assert "| local fits | 16.02 s |" in text  # 50 clients of a million values
    assert "| every process takes the whole cohort's records | 3.0 s, 43 MiB |" in text
    assert "| memory of a process, without the cohort's records | 520 MiB |" in text
