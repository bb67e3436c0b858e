"""Every LightningModule of Lightning's demos, as it is."""

from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel, DemoModel
from lightning.pytorch.demos.lstm import LightningLSTM
from lightning.pytorch.demos.transformer import LightningTransformer
from lightning.pytorch.utilities.model_helpers import is_overridden

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme

from .demos import DemoData, made, modules_of_demos
from .runs import assert_ran, run, seeded, traces

pytestmark = pytest.mark.usefixtures("no_report")

KINDS = modules_of_demos()


def test_the_walk_finds_them() -> None:
    assert {BoringModel, DemoModel, LightningLSTM, LightningTransformer} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_trains_and_is_deployed(kind: type[L.LightningModule], tmp_path: Path) -> None:
    module = seeded(lambda: made(kind))
    before = traces(module)
    data = DemoData(kind, tmp_path / "data")
    if not module.automatic_optimization:
        with pytest.raises(ConfigurationError, match=rf"{kind.__name__}: manual optimization.*return the loss from"):
            run(module, data)
        return
    # Several have one layer alone, which the edges' 8 bits would keep from w4.
    there = run(module, data, scheme=QuantScheme("w4a8", edge_bits=None))
    assert_ran(there, module, before, exports=is_overridden("validation_step", module))


def test_a_demo_reports_what_a_subclass_logs(tmp_path: Path) -> None:
    """BoringModel logs nothing; Lightning's own tests subclass it."""

    class Logs(BoringModel):
        def validation_step(self, batch: object, batch_idx: int) -> None:
            self.log("val_loss", self.step(batch))

    there = run(seeded(Logs), DemoData(BoringModel, tmp_path), scheme=QuantScheme("w4a8", edge_bits=None))
    assert there.summary["metric_name"] == "val_loss"
    assert there.summary["metric_quantized"] > 0
