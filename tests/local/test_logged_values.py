"""Reduction of logged values."""

import pytest
import torch
from torchmetrics import MeanMetric

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.logged_values import LoggedValues, plain


@pytest.mark.parametrize(
    ("reduction", "wanted"),
    [
        ("mean", (1 * 4 + 5 * 2 + 3 * 2) / 8),
        (torch.mean, 2.5),
        ("sum", 9.0),
        (torch.sum, 9.0),
        ("min", 1.0),
        (torch.min, 1.0),
        (min, 1.0),
        ("max", 5.0),
        (torch.amax, 5.0),
        (max, 5.0),
    ],
)
def test_reductions(reduction: object, wanted: float) -> None:
    values = LoggedValues()
    for value, batch_size in ((1.0, 4), (torch.tensor(5.0), 2), (torch.tensor([[3]]), 2)):
        values.add("x", value, batch_size, reduction)  # type: ignore[arg-type]  # one of them is a builtin
    assert plain(values.finish()) == {"x": wanted}


def test_sums_in_double_precision() -> None:
    values = LoggedValues()
    for value in (1e8, 1.0, -1e8):
        values.add("x", torch.tensor(value), 1, "sum")
    assert plain(values.finish()) == {"x": 1.0}


def test_keeps_the_order_of_first_logging_and_the_last_value() -> None:
    values = LoggedValues()
    for name, value in (("b", 1.0), ("a", 2.0), ("b", 3.0)):
        values.add(name, value, 1, "mean")
    assert plain(values.last) == {"b": 3.0, "a": 2.0}
    assert list(values.finish()) == ["b", "a"]


def test_an_epoch_starts_empty() -> None:
    values, metric = LoggedValues(), MeanMetric()
    metric.update(4.0)
    values.add("m", metric, 1, "mean")
    values.add("x", 1.0, 1, "mean")
    assert plain(values.finish()) == {"m": 4.0, "x": 1.0}
    assert metric.update_count == 0
    assert values.finish() == {}


def test_step_and_epoch_fork_the_name() -> None:
    values, metric = LoggedValues(), MeanMetric()
    for number in (1.0, 3.0):
        metric.update(number)
        values.add("m", metric, 1, "mean", both=True)
        values.add("x", number, 1, "mean", both=True)
    assert plain(values.last) == {"x": 3.0, "x_step": 3.0}
    assert plain(values.finish()) == {"m": 2.0, "m_epoch": 2.0, "x": 2.0, "x_epoch": 2.0}


def test_holds_no_graph() -> None:
    values, parameter = LoggedValues(), torch.ones(1, requires_grad=True)
    values.add("x", parameter * 2, 1, "mean")
    assert not values.last["x"].requires_grad
    assert not values.finish()["x"].requires_grad


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2), r"got a tensor of shape \(2,\)"),
        ("high", "got str"),
        (None, "got NoneType"),
        ({"a": 1}, "got dict"),
    ],
)
def test_refuses_what_is_no_number(value: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"self.log\\('x', ...\\): {message}"):
        LoggedValues().add("x", value, 1, "mean")


def test_refuses_other_reductions() -> None:
    with pytest.raises(ConfigurationError, match=r"reduce_fx=median\): must be one of mean, sum, min, max"):
        LoggedValues().add("x", 1.0, 1, torch.median)
