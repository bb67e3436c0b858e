"""What is refused before the first round, and before anything is written."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme

from ..small_federation import NUM_FEATURES, SmallData, SmallModule, trainer
from .runs import Recorder, fit


@pytest.mark.usefixtures("quick")
class TestRefuses:
    """Before the first round, and before anything is written."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_rounds": 0}, "max_rounds 0"),
            ({"max_rounds": True}, "max_rounds True: must be a whole number"),
            ({"clients_per_round": "half"}, "clients_per_round 'half': must be a count, or a fraction"),
            ({"clients_per_round": True}, "clients_per_round True: must be a count"),
            ({"round_deadline": True}, "round_deadline True"),
            ({"measured_seconds": 3}, "measured_seconds 3: must be true, false, or the folder of a run"),
            ({"ema_decay": "0.9"}, "ema_decay '0.9'"),
            ({"average_from": 3, "max_rounds": 2}, "average_from 3: must be a round of the run, up to 2"),
            ({"average_from": 1, "ema_decay": 0.5}, "average_from and ema_decay are both given"),
            ({"average_from": 0}, "average_from 0: must be a whole number"),
            (
                {"strategy": "fedhq"},
                "strategy 'fedhq' is for lightning.Trainer.*FederatedTrainer takes 'auto' or 'ddp'",
            ),
            ({"strategy": "ddp_spawn"}, "strategy 'ddp_spawn' starts processes by spawn"),
            ({"strategy": "ddp_fork", "devices": 2}, "strategy 'ddp_fork' starts processes by fork"),
            ({"max_rounds": 2.5}, "max_rounds 2.5: must be a whole number"),
            ({"local_epochs": 1.5}, "local_epochs 1.5: must be a whole number"),
            ({"local_steps": -1}, "local_steps -1"),
            ({"local_epochs": 1, "local_steps": 1}, "both given"),
            ({"threads": 0}, "threads 0"),
            ({"accumulate_grad_batches": 0}, "accumulate_grad_batches 0"),
            ({"gradient_clip_val": -1.0}, "gradient_clip_val -1.0"),
            ({"round_deadline": math.inf}, "round_deadline inf"),
            ({"round_lr": "cosin"}, "round_lr 'cosin'.*did you mean 'cosine'"),
            ({"round_lr": 0.0}, "round_lr 0.0"),
            ({"mode_lr": {"qta": 0.3}}, "mode_lr 'qta'.*did you mean 'qat'"),
            ({"mode_lr": {"qat": 0}}, "mode_lr: qat 0: must be greater than 0"),
            ({"ema_decay": 1.0}, r"ema_decay 1\.0: must be between 0 and 1"),
            ({"ema_decay": math.nan}, "ema_decay nan"),
            ({"uplink": "weight"}, "uplink 'weight'.*did you mean 'weights'"),
            ({"downlink": "w4"}, "downlink 'w4'"),
            ({"precision": "16-mixed"}, "precision '16-mixed'"),
            ({"monitor_mode": "maximum"}, "monitor_mode 'maximum'"),
            ({"scheme": "w9a8"}, "did you mean 'w8a8'"),
            ({"callbacks": [FixedAllocator("ptq"), FixedAllocator("qat")]}, "2 allocators"),
            ({"callbacks": [Recorder(), Recorder()]}, "two share the state_key 'Recorder'"),
            ({"callbacks": [L.Callback()]}, "Callback is neither"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            trainer(**settings)

    @pytest.mark.parametrize(
        ("module", "data", "settings", "message"),
        [
            (nn.Linear(2, 2), None, {}, "module: got Linear; give a LightningModule"),
            (None, L.LightningDataModule(), {}, "give a FederatedDataModule"),
            (None, SmallData({}), {}, "no clients"),
            (None, SmallData((0, 0)), {}, "all 2 clients are empty"),
            (None, None, {"clients_per_round": 5}, r"clients_per_round 5: must be 1\.\.4"),
            (None, None, {"monitor": "val_acc"}, "'val_acc': nobody logs it; logged: val_loss, val_accuracy"),
            (None, None, {"callbacks": FixedAllocator("ptq")}, "trainer.scheme is not set"),
            (None, None, {"scheme": QuantScheme("w4a8-g7", edge_bits=None)}, r"net\.0"),
            (None, None, {"fleet": "mixd"}, "did you mean 'mixed'"),
        ],
    )
    def test_before_anything_is_written(
        self, module: Any, data: Any, settings: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            fit(module, data or SmallData() if data is None else data, default_root_dir=tmp_path / "runs", **settings)
        assert not (tmp_path / "runs").exists()

    def test_nothing_to_quantize(self, tmp_path: Path) -> None:
        class NoLayers(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential()
                self.weight = nn.Parameter(torch.zeros(NUM_FEATURES, 3))

            def forward(self, inputs: Tensor) -> Tensor:
                return inputs @ self.weight

        fit(NoLayers(), max_rounds=1)
        with pytest.raises(ConfigurationError, match="quantiz"):
            fit(NoLayers(), scheme="w4a8", callbacks=FixedAllocator("qat"), default_root_dir=tmp_path / "other")
        assert not (tmp_path / "other").exists()

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, ConfigurationError])
    @pytest.mark.parametrize("where", ["launch", "round 0"])
    def test_what_fails_before_the_first_round_leaves_no_folder(
        self, error: type[BaseException], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: Any) -> Any:
            raise error

        there = trainer(default_root_dir=tmp_path / "runs", callbacks=Recorder(fail) if where == "round 0" else None)
        if where == "launch":
            monkeypatch.setattr(there.fabric, "launch", fail)
        with pytest.raises(error):
            there.fit(SmallModule(), SmallData())
        assert not list(tmp_path.rglob("recipe.yaml"))

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match="cannot be written"):
            fit(default_root_dir=tmp_path / "file")
