"""What a module keeps from one evaluation to the next."""

from typing import Any

import pytest
import torch
from torchmetrics import MaxMetric

from fedhq_lightning.callbacks import FixedAllocator

from ..small_federation import NUM_CLASSES, SmallData, SmallModule, trainer
from .runs import Recorder, checkpoint, fit, records

SETTINGS: dict[str, Any] = {"max_rounds": 5, "scheme": "w2a8", "callbacks": FixedAllocator("ptq"), "monitor": "loss"}


class Best(SmallModule):
    """The lowest loss so far in three ways, one of which logs its own metric object."""

    def __init__(self) -> None:
        super().__init__(lr=1.5)  # so large that the loss goes up and down
        self.highest = MaxMetric()
        self.lowest: float | None = None
        self.history: list[float] = []
        self.evaluations = torch.zeros(())
        self.losses: list[torch.Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.losses.append(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        loss = torch.stack(self.losses).mean()
        self.losses.clear()
        self.highest.update(loss)
        self.lowest = float(loss) if self.lowest is None else min(self.lowest, float(loss))
        self.history.append(float(loss))
        self.evaluations += 1
        self.log_dict({"loss": loss, "highest": self.highest.compute(), "lowest": self.lowest})
        self.log_dict({"oldest": self.history[0], "evaluations": self.evaluations})


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["fp", "quantized"])
def test_lasts_over_rounds(kind: str) -> None:
    there, _ = fit(Best(), **SETTINGS)
    rows = [record.metrics for record in records(there)]
    losses = [row[f"{kind}/loss"] for row in rows]
    assert len(set(losses)) == 6
    for number, row in enumerate(rows, start=1):
        assert row[f"{kind}/highest"] == max(losses[:number])
        assert row[f"{kind}/lowest"] == min(losses[:number])
        assert row[f"{kind}/oldest"] == losses[0]
        assert row[f"{kind}/evaluations"] == number


@pytest.mark.usefixtures("quick")
def test_begins_with_what_on_fit_start_makes() -> None:
    class Starts(SmallModule):
        def on_fit_start(self) -> None:
            self.evaluations = 0
            self.register_buffer("mask", torch.full((NUM_CLASSES,), 2.0), persistent=False)
            torch.nn.init.zeros_(self.net[0].weight)  # what the server sends stands

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("factor", (self(batch[0]) * self.mask / self(batch[0])).mean())
            self.log("weight", self.net[0].weight.abs().sum())

        def on_validation_epoch_end(self) -> None:
            self.evaluations += 1
            self.log("evaluations", float(self.evaluations))

    there, _ = fit(Starts(), **SETTINGS | {"monitor": "weight", "monitor_mode": "max", "max_rounds": 2})
    rows = [record.metrics for record in records(there)]
    for kind in ("fp", "quantized"):
        assert [row[f"{kind}/evaluations"] for row in rows] == [1, 2, 3]
        assert [row[f"{kind}/factor"] for row in rows] == [2, 2, 2]
        assert min(row[f"{kind}/weight"] for row in rows) > 0


@pytest.mark.usefixtures("quick")
def test_lasts_over_a_kill() -> None:
    def interrupt(there: Any, record: Any) -> None:
        if record.round == 2:
            raise KeyboardInterrupt

    unbroken, _ = fit(Best(), **SETTINGS)
    ptq = SETTINGS["callbacks"]
    broken = trainer(**SETTINGS | {"callbacks": [Recorder(interrupt), ptq]})
    with pytest.raises(KeyboardInterrupt):
        broken.fit(Best(), SmallData())
    resumed, _ = fit(Best(), ckpt_path=broken.run_dir, **SETTINGS | {"callbacks": [Recorder(), ptq]})
    assert [record.metrics for record in records(resumed)] == [record.metrics for record in records(unbroken)]


@pytest.mark.usefixtures("quick")
def test_an_ordinary_module_keeps_nothing() -> None:
    there, _ = fit(scheme="w4a8", callbacks=FixedAllocator("ptq"))
    assert checkpoint(there)["evaluator"] == {}
