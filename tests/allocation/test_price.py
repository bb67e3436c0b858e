"""At what price another boundary is worth trying."""

import math

import pytest

from fedhq_lightning.allocation.boundary import Boundary, ClientFacts, allot
from fedhq_lightning.allocation.price import time_saved

SLOW, FAST = ClientFacts(10.0, 14.0, 0.0, num_steps=10), ClientFacts(1.0, 1.4, 0.0, num_steps=10)
UNLIKE = {"slow": SLOW, "a": FAST, "b": FAST, "c": FAST, "d": FAST}
ALIKE = {"a": SLOW, "b": SLOW, "c": SLOW}
ALL = Boundary(0.0, 0.0)


def saved(
    challenger: Boundary, facts, incumbent: Boundary = ALL, slowdown: float = 0.0, qat: bool = False
) -> float | None:
    return time_saved(
        challenger, incumbent, [facts] * 2, lambda each, own: allot(each, own, math.inf, 0.5, None, qat), slowdown
    )


def test_shorter_rounds_are_worth_trying_where_they_cost_few_steps():
    assert saved(Boundary(-0.5, 0.0), UNLIKE) == pytest.approx(0.5)  # for a tenth of the steps


def test_shorter_rounds_that_only_train_less_are_not():
    assert saved(Boundary(-0.5, 0.0), ALIKE) is None
    assert saved(Boundary(-0.01, 0.0), ALIKE) is None


def test_what_plans_alike_is_not_worth_trying():
    assert saved(ALL, UNLIKE) is None
    assert saved(Boundary(-0.5, 0.1), UNLIKE, incumbent=Boundary(-0.5, 0.0)) is None


@pytest.mark.parametrize(("slowdown", "is_allowed"), [(0.0, False), (0.1, False), (0.2, True)])
def test_rounds_are_made_longer_as_far_as_is_allowed(slowdown, is_allowed):
    found = saved(Boundary(0.2, 0.0), UNLIKE, slowdown=slowdown, qat=True)
    assert (found is not None) == is_allowed
    assert found is None or found < 0


def test_back_to_longer_rounds_is_allowed_up_to_those_of_ptq():
    assert saved(ALL, UNLIKE, incumbent=Boundary(-0.5, 0.0)) == pytest.approx(-1.0)


def test_no_rounds_are_no_reason():
    found = time_saved(Boundary(-0.5, 0.0), ALL, [], lambda each, own: allot(each, own, 1.0, 0.5), 0.0)
    assert found is None
