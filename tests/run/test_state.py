"""What a run carries from round to round."""

import io

import pytest
import torch

from fedhq_lightning.run.state import RunState

from ..small_federation import same_bits
from ..small_run import small_rounds


def state(value: float = 1.0) -> RunState:
    return RunState({"w": torch.tensor([value]), "count": torch.tensor(int(value))})


def test_survives_a_checkpoint() -> None:
    before = state(2.0)
    before.average(0.5)
    before.round = 3
    before.keep_as_best(0.75)
    before.stopped = True
    assert before.reach([7, 2]) == [True, True]
    file = io.BytesIO()
    torch.save(before.to_checkpoint(), file)
    file.seek(0)
    records = small_rounds(3)
    after = RunState.from_checkpoint(torch.load(file, weights_only=True), records)
    assert same_bits(after.global_state, before.global_state)
    assert after.averaged_state is not None
    assert same_bits(after.deployed, before.deployed)
    assert (after.round, after.best_round, after.best_value, after.stopped) == (3, 3, 0.75, True)
    assert after.reach([2, 5, 7]) == [False, True, False]
    assert after.reached.tolist() == [7, 2, 5]
    assert after.records == records
    assert after.virtual_seconds == records[3].total_virtual_seconds
    assert after.wall_seconds == records[3].total_wall_seconds


def test_a_new_run_has_used_no_time() -> None:
    assert (state().wall_seconds, state().virtual_seconds) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("mode", "best", "value", "better"),
    [
        ("max", None, 0.1, True),
        ("max", 0.5, 0.6, True),
        ("max", 0.5, 0.5, False),
        ("min", 0.5, 0.4, True),
        ("min", 0.5, 0.6, False),
        ("max", None, float("nan"), False),
        ("min", 0.5, float("nan"), False),
        ("max", None, None, False),
    ],
)
def test_is_better(mode: str, best: float | None, value: float | None, better: bool) -> None:
    run = state()
    run.best_value = best
    assert run.is_better(value, mode) is better


def test_deployed_is_the_best_round_then_the_last() -> None:
    run = state(1.0)
    assert run.deployed is run.global_state
    run.round = 1
    run.keep_as_best(0.9)
    run.global_state = {"w": torch.tensor([5.0]), "count": torch.tensor(5)}
    assert run.deployed["w"].item() == 1.0
    assert run.best_round == 1


def test_average_follows_the_global_model() -> None:
    run = state(1.0)
    run.average(0.75)
    assert same_bits(run.served, run.global_state)
    wanted = 1.0
    for value in (3.0, -2.0, 10.0):
        run.global_state = {"w": torch.tensor([value]), "count": torch.tensor(int(value))}
        run.average(0.75)
        wanted = 0.75 * wanted + 0.25 * value
        assert run.served["w"].item() == pytest.approx(wanted)
        assert run.served["count"].item() == int(value)
        assert run.global_state["w"].item() == value


def test_best_state_is_the_average() -> None:
    run = state(1.0)
    run.average(0.5)
    run.global_state = state(3.0).global_state
    run.average(0.5)
    run.keep_as_best(1.0)
    run.global_state = state(9.0).global_state
    run.average(0.5)
    assert run.deployed["w"].item() == 2.0


def test_the_average_keeps_a_mask_of_infinities() -> None:
    state = RunState({"mask": torch.tensor([0.0, -torch.inf]), "weight": torch.tensor([0.0, 1.0])})
    state.average(0.5)
    state.global_state = {"mask": torch.tensor([0.0, -torch.inf]), "weight": torch.tensor([1.0, 1.0])}
    state.average(0.5)
    assert state.averaged_state is not None
    assert torch.equal(state.averaged_state["mask"], torch.tensor([0.0, -torch.inf]))
    assert torch.equal(state.averaged_state["weight"], torch.tensor([0.5, 1.0]))
