"""Clients that are quarantined again and again, and runs that get nothing from them."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedhq_lightning.errors import RunError
from fedhq_lightning.federated.failing_clients import (
    Offences,
    after_round,
    check_fruitful,
    check_has_model,
    sitting_out,
)
from fedhq_lightning.federated.not_finite import odd_values
from fedhq_lightning.federated.update_checks import NOT_FINITE
from fedhq_lightning.run.records import ClientRecord, RoundRecord, Status
from fedhq_lightning.testing.made_rounds import made_context, made_record
from fedhq_lightning.types import Plan

CONTEXT = made_context(range(6), 10)
_DIVERGED = f"{NOT_FINITE}: its data are not why, so the training diverged: look at the loss and the learning rate"
_FOUND = odd_values([(torch.tensor([[math.nan]]), torch.zeros(1))], ["bmi"])
_MISSING = f"{NOT_FINITE}: {_FOUND.words if _FOUND else None}"


def _client(round_number: int, **changes: Any) -> ClientRecord:
    return replace(made_record(round_number, Plan({2: "fp"}), CONTEXT).clients[0], **changes)


def _after(statuses: list[Status], sit_out_rounds: int = 4) -> tuple[Offences, list[int]]:
    """What is held against a client after such rounds, and the rounds after which it began to sit out."""
    offences, began = Offences(), list[int]()
    for number, status in enumerate(statuses, start=1):
        record = _client(number, status=status)
        offences, out = after_round(offences, [(7, record)], number, sit_out_rounds)
        began += [number] * len(out)
    return offences, began


class TestSittingOut:
    def test_three_times_in_a_row(self) -> None:
        offences, began = _after(["quarantined"] * 3)
        assert began == [3]
        assert [bool(sitting_out(offences, number)) for number in range(3, 10)] == [True] * 5 + [False] * 2

    def test_a_usable_update_between_forgives(self) -> None:
        assert _after(["quarantined", "quarantined", "ok", "quarantined", "quarantined"])[1] == []
        assert _after(["quarantined", "ok"])[0] == {}

    def test_being_late_or_idle_is_no_offence_and_no_merit(self) -> None:
        assert _after(["quarantined", "late", "quarantined", "idle", "quarantined"])[1] == [5]
        assert _after(["late", "idle"])[0] == {}

    def test_once_back_it_has_three_chances_again(self) -> None:
        assert _after(["quarantined"] * 8, sit_out_rounds=1)[1] == [3, 6]

    def test_it_can_be_turned_off(self) -> None:
        assert _after(["quarantined"] * 8, sit_out_rounds=0) == ({}, [])


def _round(number: int, quarantined: int, late: int = 0) -> RoundRecord:
    """Of six clients."""
    plan = Plan(dict.fromkeys(range(6), "fp"))
    return made_record(number, plan, CONTEXT, quarantined=quarantined, late=late)


class TestFruitlessRounds:
    @pytest.mark.parametrize(
        ("quarantined", "min_clients", "ends"),
        [
            ([6, 6, 6], 1, True),
            ([6, 5, 6], 1, False),
            ([5, 5, 5], 2, True),
            ([0, 6, 6, 6], 1, True),
            ([6, 6], 1, False),
        ],
    )
    def test_three_in_a_row_end_the_run(self, quarantined: list[int], min_clients: int, ends: bool) -> None:
        records = [_round(number, count) for number, count in enumerate(quarantined, start=1)]
        failed = _client(3, status="quarantined", reason="RuntimeError: boom")
        if not ends:
            check_fruitful(records, [failed], min_clients, num_clients=6)
            return
        with pytest.raises(
            RunError,
            match=r"usable updates?( each)?, so the run ends .* client 2: RuntimeError: boom",
        ):
            check_fruitful(records, [failed], min_clients, num_clients=6)

    def test_rounds_whose_clients_are_late_do_not(self) -> None:
        check_fruitful([_round(number, 0, late=6) for number in (1, 2, 3)], [], 1, num_clients=6)

    @pytest.mark.parametrize(
        ("round_number", "num_failed", "num_clients", "others", "ends"),
        [
            (1, 3, 40, [], True),
            (1, 2, 2, [], True),
            (1, 2, 40, [], False),
            (1, 3, 40, [_DIVERGED], False),
            (2, 3, 40, [], False),
        ],
    )
    def test_a_first_round_of_data_that_are_not_finite_does(
        self, round_number: int, num_failed: int, num_clients: int, others: list[str], ends: bool
    ) -> None:
        reasons = [_MISSING] * num_failed + others
        clients = [_client(round_number, status="quarantined", reason=reason) for reason in reasons]
        records = [_round(number, 6) for number in range(1, round_number + 1)]
        if not ends:
            check_fruitful(records, clients, 1, num_clients)
            return
        with pytest.raises(RunError, match=f"the data of all its {num_failed} clients hold .* client 2: .*column bmi"):
            check_fruitful(records, clients, 1, num_clients)

    def test_a_run_that_nobody_helped_has_no_model(self) -> None:
        with pytest.raises(RunError, match="none of 2 rounds had a usable update, so the model is untrained"):
            check_has_model([_round(0, 0), _round(1, 6), _round(2, 6)], [], 1)
        check_has_model([_round(0, 0), _round(1, 6), _round(2, 5)], [], 1)
        with pytest.raises(RunError, match="client 2: late"):
            check_has_model([_round(0, 0), _round(1, 0, late=6)], [_client(1, status="late")], 1)
        check_has_model([_round(0, 0)], [], 1)
