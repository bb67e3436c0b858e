"""EarlyStopping: when, why, and after a resume."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedhq_lightning.callbacks.early_stopping import EarlyStopping
from fedhq_lightning.errors import ConfigurationError

from ..conftest import Warned
from ..small_federation import SmallData, SmallModule, trainer


def run(
    callback: EarlyStopping, values: list[float | None], mode: str = "max", first_round: int = 1, **trainer: Any
) -> int | None:
    """Give the values round by round; the round that stopped, or None."""
    watched = SimpleNamespace(name="val_accuracy", mode=mode)
    fake = SimpleNamespace(monitored=watched, should_stop=False, is_global_zero=True)
    fake.__dict__.update(trainer)
    for number, value in enumerate(values, start=first_round):
        callback.on_round_end(fake, SimpleNamespace(round=number, monitored=value))  # type: ignore[arg-type]  # stand-ins
        if fake.should_stop:
            return number
    return None


def test_stops_after_patience_evaluations_without_improvement() -> None:
    callback = EarlyStopping(patience=3)
    assert run(callback, [0.5, 0.6, 0.55, 0.6, 0.59, 0.9]) == 5
    assert callback.reason == (
        "stopped after round 5: val_accuracy has not improved on 0.6 by more than 0 for 3 evaluations"
    )


def test_improvement_starts_the_count_again() -> None:
    callback = EarlyStopping(patience=2)
    assert run(callback, [0.5, 0.4, 0.51, 0.4, 0.52, 0.4]) is None
    assert callback.best == 0.52
    assert callback.reason == ""


def test_min_mode_and_min_delta() -> None:
    assert run(EarlyStopping(patience=2), [1.0, 0.99, 0.98, 0.97], mode="min") is None
    assert run(EarlyStopping(patience=2, min_delta=0.05), [1.0, 0.99, 0.98, 0.9], mode="min") == 3
    assert run(EarlyStopping(patience=2), [1.0, 1.1, 1.2], mode="min") == 3


def test_small_steps_add_up_to_an_improvement() -> None:
    assert run(EarlyStopping(patience=3, min_delta=0.05), [0.5, 0.53, 0.56, 0.59, 0.62]) is None


def test_rounds_without_evaluation_do_not_count() -> None:
    callback = EarlyStopping(patience=2)
    assert run(callback, [0.5, None, None, None, 0.4, None]) is None
    assert run(callback, [0.4], first_round=7) == 7


@pytest.mark.parametrize("before", [0.9, math.nan, math.inf, None])
def test_the_value_before_any_training_neither_stops_nor_counts(before: float | None) -> None:
    callback = EarlyStopping(patience=2)
    assert run(callback, [before], first_round=0) is None
    assert callback.state_dict() == EarlyStopping(patience=2).state_dict()
    assert run(callback, [0.5, 0.4, 0.4]) == 3
    assert "not improved on 0.5" in callback.reason


def test_a_run_whose_first_model_gives_no_number_is_trained() -> None:
    class NotYet(SmallModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            first = SmallModule().net[0].weight
            self.log("val_loss", math.nan if torch.equal(self.net[0].weight, first) else 1.0)

    callback = EarlyStopping(patience=5)
    there = trainer(scheme=None, callbacks=[callback], monitor="val_loss")
    there.writes_model = False
    there.fit(NotYet(), SmallData())
    assert (there.summary["rounds"], callback.reason) == (2, "")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_stops_at_once_and_says_so(value: float) -> None:
    callback = EarlyStopping(patience=10)
    assert run(callback, [0.5, value]) == 2
    assert callback.reason == (
        f"stopped after round 2: val_accuracy is {value}, not a finite number; best value before: 0.5"
    )


def test_state_resumes_where_it_was() -> None:
    values: list[float | None] = [0.5, 0.6, 0.55, 0.58, 0.4, 0.3]
    whole = EarlyStopping(patience=3)
    stopped = run(whole, values)
    for cut in range(1, 5):
        before, after = EarlyStopping(patience=3), EarlyStopping(patience=3)
        assert run(before, values[:cut]) is None
        assert before.state_key == after.state_key
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert run(after, values[cut:], first_round=cut + 1) == stopped
        assert after.state_dict() == whole.state_dict()


def test_a_second_run_starts_afresh() -> None:
    callback = EarlyStopping(patience=2)
    fake: Any = SimpleNamespace()
    callback.on_fit_start(fake)
    assert run(callback, [0.9, 0.8, 0.7]) == 3
    callback.on_fit_start(fake)
    assert callback.state_dict() == EarlyStopping(patience=2).state_dict()
    assert run(callback, [0.1, 0.2, 0.3]) is None
    callback.load_state_dict({"best": 0.5, "evaluations_without_improvement": 1, "reason": ""})
    callback.on_fit_start(fake)
    assert run(callback, [0.4], first_round=7) == 7
    callback.on_fit_start(fake)
    assert callback.best is None


def test_only_the_first_process_speaks_and_every_process_stops(warned: Warned) -> None:
    assert run(EarlyStopping(patience=1), [0.5, 0.5], is_global_zero=False) == 2
    assert not warned.messages
    assert run(EarlyStopping(patience=1), [0.5, 0.5]) == 2
    assert warned.messages == [
        "EarlyStopping: stopped after round 2: val_accuracy has not improved on 0.5 by more than 0 for 1 evaluations"
    ]


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="patience 0 must be 1 or more"):
        EarlyStopping(patience=0)
    for min_delta in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match=r"min_delta .* must be a finite number"):
            EarlyStopping(min_delta=min_delta)


def test_two_with_different_arguments_keep_their_states_apart() -> None:
    assert EarlyStopping(patience=3).state_key != EarlyStopping(patience=4).state_key
