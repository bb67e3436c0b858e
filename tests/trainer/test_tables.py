"""A run on tables: the columns' statistics are the server's, in every file that the run leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import BreastCancerHospitals, CSVDataModule, TableForm
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models import TabularMLP
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import same_bits, trainer
from .runs import Recorder

SETTINGS: dict[str, Any] = {"max_rounds": 2, "scheme": "w4a8", "monitor": "val_accuracy"}


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    BreastCancerHospitals(3).write(tmp_path / "hospitals")
    return tmp_path / "hospitals"


def fitted(hospitals: Path, ckpt_path: Path | None = None, **settings: Any) -> tuple[FederatedTrainer, TabularMLP]:
    torch.manual_seed(0)
    module = TabularMLP()
    there = trainer(**SETTINGS | {"callbacks": [FixedAllocator(0.5)]} | settings)
    there.fit(module, CSVDataModule(hospitals, "diagnosis"), ckpt_path=ckpt_path)
    return there, module


def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
    if record.round == 1:
        raise KeyboardInterrupt


def test_the_deployed_model_takes_raw_rows(hospitals: Path) -> None:
    there, module = fitted(hospitals)
    model = torch.export.load(there.run_dir / "model/model.pt2").module()
    form = TableForm.read(there.run_dir / "model/inputs.json")
    assert form == CSVDataModule(hospitals, "diagnosis").form
    loader = CSVDataModule(hospitals, "diagnosis").val_dataloader()
    right = sum(int((model(rows).argmax(1) == labels).sum()) for rows, labels in loader)
    assert right / len(loader.dataset) == pytest.approx(there.summary["metric_quantized"])
    again = TabularMLP()
    again.load_state_dict(load_file(there.run_dir / "model/weights.safetensors"))
    (rows, _), *_ = loader
    assert torch.equal(again(rows), module(rows))


def test_statistics_go_down_once_and_never_up(hospitals: Path) -> None:
    there, module = fitted(hospitals)
    form = CSVDataModule(hospitals, "diagnosis").form
    means = [column.mean for column in form.columns if hasattr(column, "mean")]
    assert torch.equal(module.input.mean[module.input.category < 0], torch.tensor(means))  # type: ignore[index]  # set
    first, second = (
        json.loads(line)["clients"][0] for line in (there.run_dir / "rounds.jsonl").read_text().splitlines()[1:]
    )
    assert first["downlink_bytes"] - second["downlink_bytes"] >= 4 * (module.input.mean.numel() * 2)  # type: ignore[union-attr]
    assert first["uplink_bytes"] == second["uplink_bytes"]


def test_what_left_the_clients_is_in_the_record(hospitals: Path) -> None:
    there, _ = fitted(hospitals, max_rounds=1)
    told = json.loads((there.run_dir / "inputs.json").read_text())
    assert told["fit"]["clients"] == 3
    assert any("sum of squared differences" in each for each in told["fit"]["each_client_sent"])
    assert told["classes"] == ["benign", "malignant"] == there.summary["per_class"]["classes"]


class TestResume:
    def test_has_the_bits_of_a_run_that_was_not_interrupted(self, hospitals: Path) -> None:
        _, unbroken = fitted(hospitals)
        broken = trainer(**SETTINGS, callbacks=[FixedAllocator(0.5), Recorder(interrupt)])
        torch.manual_seed(0)
        with pytest.raises(KeyboardInterrupt):
            broken.fit(TabularMLP(), CSVDataModule(hospitals, "diagnosis"))
        there, resumed = fitted(hospitals, broken.run_dir, callbacks=[FixedAllocator(0.5), Recorder()])
        assert there.run_dir == broken.run_dir
        assert same_bits(resumed.state_dict(), unbroken.state_dict())

    def test_with_other_files_is_refused(self, hospitals: Path) -> None:
        there, _ = fitted(hospitals)
        file = hospitals / "hospital-03.csv"
        file.write_text(file.read_text().replace("small", "tiny"))
        with pytest.raises(ConfigurationError, match=r"inputs\.json: the data are not those .*columns\.0\.categories"):
            fitted(hospitals, there.run_dir, max_rounds=3)


def test_columns_that_nobody_tells_are_refused() -> None:
    from ..small_federation import SmallData

    with pytest.raises(ConfigurationError, match="the data tell no columns of a table; give a CSVDataModule"):
        trainer().fit(TabularMLP(), SmallData())
