"""Lightning makes a module of our checkpoints, as of its own."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.lightning_checkpoint import for_lightning

from ..small_federation import SmallData, SmallModule, same_bits, trainer


class Configured(SmallModule):
    """Sized by its hyperparameters, of which some are no plain values."""

    def __init__(self, width: int = 4, activation: Any = nn.ReLU, sizes: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(12, width), activation(), nn.Linear(width, 3))


class OneArgument(pl.LightningModule):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(config)
        self.layer = nn.Linear(config["size"], config["deep"]["er"])


def saved(module: pl.LightningModule, path: Path) -> Path:
    torch.save(for_lightning(module, module.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    there = trainer(max_rounds=3, ema_decay=0.5, scheme="w4a8", default_root_dir=tmp_path_factory.mktemp("runs"))
    there.writes_model = False
    module = SmallModule(lr=0.07)
    there.fit(module, SmallData())
    return there, module


class TestOfARun:
    def test_best_holds_the_fitted_weights_and_hyperparameters(self, run: Any) -> None:
        there, module = run
        loaded = SmallModule.load_from_checkpoint(there.run_dir / "checkpoints" / "best.ckpt")
        assert same_bits(loaded.state_dict(), module.state_dict())
        assert loaded.hparams == module.hparams
        assert loaded.hparams["lr"] == 0.07

    def test_each_round_holds_the_weights_that_were_evaluated(self, run: Any) -> None:
        there, _ = run
        for path in sorted((there.run_dir / "checkpoints").glob("round-*.ckpt")):
            held = load_checkpoint(path)["state"]
            loaded = SmallModule.load_from_checkpoint(path, lr=0.5)
            assert same_bits(loaded.state_dict(), held["averaged_state"])
            assert loaded.hparams["lr"] == 0.5

    def test_weights_are_held_once(self, run: Any) -> None:
        there, _ = run
        content = load_checkpoint(there.run_dir / "checkpoints" / "best.ckpt")
        for name, value in content["state_dict"].items():
            assert value.data_ptr() == content["state"][name].data_ptr()

    def test_lightnings_trainer_evaluates_it(self, run: Any) -> None:
        there, _ = run
        lightnings = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's own
            found = lightnings.validate(
                SmallModule(),
                SmallData().val_dataloader(),
                ckpt_path=there.run_dir / "checkpoints" / "best.ckpt",
                verbose=False,
            )
        best = load_checkpoint(there.run_dir / "checkpoints" / "best.ckpt")["round"]
        record = json.loads((there.run_dir / "rounds.jsonl").read_text().splitlines()[best])
        assert found[0]["val_loss"] == pytest.approx(record["metrics"]["fp/val_loss"], abs=1e-6)


class TestHyperparameters:
    def test_plain_ones(self, tmp_path: Path) -> None:
        module = SmallModule(lr=0.3)
        path = saved(module, tmp_path / "a.ckpt")
        assert set(load_checkpoint(path)) == {
            "state_dict",
            "hyper_parameters",
            "hparams_name",
            "pytorch-lightning_version",
        }
        assert SmallModule.load_from_checkpoint(path).hparams == module.hparams

    def test_what_is_not_plain_is_asked_for_and_never_its_default(self, tmp_path: Path) -> None:
        path = saved(Configured(5, nn.GELU, (3,)), tmp_path / "a.ckpt")
        with pytest.raises(ConfigurationError, match=r"activation: .*GELU.*load_from_checkpoint\(PATH, activation="):
            Configured.load_from_checkpoint(path)
        loaded = Configured.load_from_checkpoint(path, activation=nn.GELU)
        assert isinstance(loaded.net[1], nn.GELU)
        assert loaded.hparams["sizes"] == (3,)
        assert loaded.net[0].out_features == 5

    @pytest.mark.parametrize("value", [Path("x"), partial(max), {"a": {"b": Path("x")}}, [nn.ReLU], {1}])
    def test_nothing_is_pickled(self, tmp_path: Path, value: Any) -> None:
        load_checkpoint(saved(Configured(sizes=value), tmp_path / "a.ckpt"))

    def test_a_single_argument(self, tmp_path: Path) -> None:
        path = saved(OneArgument({"size": 3, "deep": {"er": 2}}), tmp_path / "a.ckpt")
        assert OneArgument.load_from_checkpoint(path).layer.weight.shape == (2, 3)

    def test_none(self, tmp_path: Path) -> None:
        class Bare(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(2, 2)

        module = Bare()
        loaded = Bare.load_from_checkpoint(saved(module, tmp_path / "a.ckpt"))
        assert same_bits(loaded.state_dict(), module.state_dict())
