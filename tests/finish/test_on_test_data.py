"""What is told of the test data: the deployed model's metrics, and nothing where there are none."""

from typing import Any

import lightning as L
import pytest

from fedhq_lightning.run.summary_form import monitored_on_test_data
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import SmallData, SmallModule, trainer

pytestmark = pytest.mark.usefixtures("no_report", "no_program")


class Stepless(SmallModule):
    test_step = L.LightningModule.test_step


class Dataless(SmallData):
    test_dataloader = L.LightningDataModule.test_dataloader


def fit(module: L.LightningModule, data: SmallData, **settings: Any) -> FederatedTrainer:
    there = trainer(max_rounds=1, scheme="w4a8", **settings)
    there.fit(module, data)
    return there


def test_both_models_are_evaluated_on_the_test_data() -> None:
    there = fit(SmallModule(), SmallData())
    found = there.summary["test_metrics"]
    assert found == there.test()
    assert found["quantized/test_loss"] != found["fp/test_loss"]
    assert found["fp/test_loss"] != there.validate()["fp/val_loss"]


@pytest.mark.parametrize(("module", "data"), [(Stepless, SmallData), (SmallModule, Dataless)])
def test_without_a_step_or_data_there_is_nothing(module: Any, data: Any) -> None:
    assert fit(module(), data()).summary["test_metrics"] is None


def test_a_step_that_fails_is_told_and_the_run_is_kept() -> None:
    class Failing(SmallModule):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("no such column")

    with pytest.warns(UserWarning, match="nothing is told of the test data: RuntimeError: no such column"):
        assert fit(Failing(), SmallData()).summary["test_metrics"] is None


@pytest.mark.parametrize(
    ("monitor", "name"),
    [("val_accuracy", "test_accuracy"), ("validation/f1", "test/f1"), ("valid_loss", "test_loss"), ("score", "score")],
)
def test_the_monitored_metric_goes_by_its_name(monitor: str, name: str) -> None:
    summary = {"metric_name": monitor, "test_metrics": {f"fp/{name}": 0.5, f"quantized/{name}": 0.25, "fp/other": 1.0}}
    assert monitored_on_test_data(summary) == (name, 0.5, 0.25)


@pytest.mark.parametrize("metrics", [None, {}, {"fp/test_loss": 1.0}])
def test_of_another_name_nothing_is_told(metrics: Any) -> None:
    assert monitored_on_test_data({"metric_name": "interval_accuracy", "test_metrics": metrics}) is None
