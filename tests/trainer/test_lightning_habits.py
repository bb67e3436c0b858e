"""What users of Lightning's Trainer write by habit works as there, or one sentence says what there is instead."""

import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.recipe.lightning_names import ARGUMENTS, ATTRIBUTES
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.trainer import FederatedTrainer

from ..beside_lightning import lightning_trainer, without_advice
from ..small_federation import SmallData, SmallModule, examples, same_bits, trainer


class Plain(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(examples(20, 1), 8)

    def val_dataloader(self) -> Any:
        return SmallData().val_dataloader()


class Several(SmallModule):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[FederatedTrainer, SmallModule]:
    there, module = trainer(max_rounds=3, default_root_dir=tmp_path_factory.mktemp("runs")), SmallModule()
    there.writes_model = False
    there.fit(model=module, datamodule=SmallData())
    return there, module


class TestEvaluation:
    def test_data_of_any_form_as_lightning_evaluates_them(self, done: Any) -> None:
        there, module = done
        loader = SmallData().val_dataloader()
        with without_advice():
            wanted = lightning_trainer().validate(module, loader, verbose=False)[0]
        for given in (
            {"dataloaders": loader},
            {"dataloaders": [loader]},
            {"dataloaders": {"clean": loader}},
            {"datamodule": Plain()},
            {"dataloaders": Plain()},
            {"dataloaders": loader, "verbose": False},
            {},
        ):
            got = there.validate(module, **given)
            assert got == {f"fp/{name}": pytest.approx(value, abs=1e-6) for name, value in wanted.items()}, given

    def test_several_loaders(self, done: Any) -> None:
        module = Several()
        loaders = {"clean": SmallData().val_dataloader(), "noisy": SmallData().test_dataloader()}
        with without_advice():
            wanted = lightning_trainer().validate(module, loaders, verbose=False)
        got = done[0].validate(model=module, dataloaders=loaders)
        for each in wanted:
            losses = {name: value for name, value in each.items() if "loss" in name}
            assert losses == {name: pytest.approx(got[f"fp/{name}"], abs=1e-6) for name in losses} != {}

    def test_after_fit_with_its_module_and_its_data(self, done: Any) -> None:
        there, module = done
        assert there.validate() == there.validate(module, SmallData())
        assert there.validate(datamodule=SmallData()) == there.validate(module, SmallData())
        assert there.test() == there.test(module, SmallData())

    def test_weights_of_a_checkpoint(self, done: Any, tmp_path: Path) -> None:
        there, module = done
        best, last = (there.validate(ckpt_path=word) for word in ("best", "last"))
        assert best == there.validate()
        directory = RunDirectory(there.run_dir)
        assert last == there.validate(ckpt_path=directory.saved_checkpoints()[-1])
        assert best == there.validate(SmallModule(), ckpt_path=there.run_dir / "checkpoints" / "best.ckpt")
        assert best == trainer().validate(SmallModule(), SmallData(), ckpt_path=str(there.run_dir))
        assert trainer().test(module, SmallData(), ckpt_path=there.run_dir) == there.test(ckpt_path="best")
        predicted = there.predict(dataloaders=[torch.ones(2, 12)], ckpt_path="best")
        assert torch.equal(predicted[0], there.predict(data=[torch.ones(2, 12)])[0])
        before = {name: value.clone() for name, value in module.state_dict().items()}
        there.validate(ckpt_path=directory.saved_checkpoints()[0])
        assert same_bits(module.state_dict(), before)

    def test_checkpoints_of_version_0_2(self, done: Any, tmp_path: Path) -> None:
        there, _ = done
        for path in (there.run_dir / "checkpoints").iterdir():
            old = load_checkpoint(path)
            for name in ("state_dict", "hyper_parameters", "hparams_name", "pytorch-lightning_version"):
                del old[name]
            torch.save(old, tmp_path / path.name)
            assert there.validate(ckpt_path=tmp_path / path.name) == there.validate(ckpt_path=path)

    @pytest.mark.parametrize(
        ("call", "told"),
        [
            (lambda there: there.validate(), "validation: no module; give one, or call fit before"),
            (lambda there: there.validate(SmallModule()), "validation: no data; give a loader"),
            (lambda there: there.validate(SmallData()), "got SmallData"),
            (lambda there: there.validate(SmallModule(), [], SmallData()), "dataloaders and datamodule are both given"),
            (
                lambda there: there.validate(SmallModule(), SmallData(), ckpt_path="best"),
                "holds no checkpoint; call fit before",
            ),
            (lambda there: there.validate(SmallModule(), [], ckpt_path="gone.ckpt"), "gone.ckpt: no such checkpoint"),
            (lambda there: there.test(pl.LightningModule(), SmallData()), "has no test_step; add one"),
            (lambda there: there.predict(data=1), "predict: no module"),
            (
                lambda there: there.predict(SmallModule(), dataloaders=[], datamodule=1),
                "predict: datamodule and another",
            ),
        ],
    )
    def test_what_is_missing(self, call: Any, told: str) -> None:
        with pytest.raises(ConfigurationError, match=told):
            call(trainer())


class TestFit:
    @pytest.mark.parametrize(
        ("call", "told"),
        [
            (lambda there, loader: there.fit(SmallModule(), loader), "datamodule: got DataLoader; .*Partitioned"),
            (lambda there, loader: there.fit(SmallModule(), loader, loader), "datamodule: got DataLoader"),
            (lambda there, loader: there.fit(SmallModule()), "datamodule: no data were given; .*Partitioned"),
            (lambda there, loader: there.fit(SmallModule(), Plain()), "datamodule: got Plain; .*Partitioned"),
            (
                lambda there, loader: there.fit(SmallModule(), train_dataloaders=loader, val_dataloaders=loader),
                "train_dataloaders is not taken: clients' loaders come from the data module",
            ),
        ],
    )
    def test_loaders_have_no_clients(self, call: Any, told: str) -> None:
        with pytest.raises(ConfigurationError, match=told):
            call(trainer(), SmallData().val_dataloader())
        assert not Path("runs").exists()

    def test_a_checkpoint_of_lightnings(self, tmp_path: Path) -> None:
        path = tmp_path / "logs" / "checkpoints" / "epoch=1.ckpt"
        path.parent.mkdir(parents=True)
        lightnings = lightning_trainer()
        lightnings.strategy.connect(SmallModule())
        lightnings.save_checkpoint(path)
        with pytest.raises(ConfigurationError, match=r"begin with Module\.load_from_checkpoint\(\.\.\.\)"):
            trainer().fit(SmallModule(), SmallData(), ckpt_path=path)
        assert [each.name for each in (tmp_path / "logs").iterdir()] == ["checkpoints"]
        assert trainer().validate(SmallModule(), SmallData(), ckpt_path=path) == trainer().validate(
            SmallModule(), SmallData()
        )


class TestTrainer:
    def test_every_argument_of_lightnings_is_known(self) -> None:
        own = inspect.signature(FederatedTrainer).parameters
        theirs = inspect.signature(pl.Trainer).parameters
        rare = {"inference_mode", "profiler", "detect_anomaly", "barebones", "plugins", "enable_autolog_hparams"}
        rare |= {"model_registry"}
        assert set(theirs) - set(own) - set(ARGUMENTS) == rare
        assert not set(own) & set(ARGUMENTS)

    def test_arguments(self) -> None:
        with pytest.raises(ConfigurationError, match="Lightning's max_epochs is not taken: max_rounds is the length"):
            FederatedTrainer(max_epochs=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected keyword argument 'max_round'"):
            FederatedTrainer(max_round=3)  # type: ignore[call-arg]

    def test_keys_of_a_recipe(self) -> None:
        text = "model: {class_path: fedhq_lightning.models.MLP}\ndata: {class_path: tests.small_federation.SmallData}\n"
        for given in ("trainer: {max_epochs: 3}\n", ""):
            with pytest.raises(ConfigurationError, match=r"unknown key 'trainer\.max_epochs': Lightning's max_"):
                resolve("small", text + given, [] if given else ["--trainer.max_epochs=3"])

    @pytest.mark.parametrize(
        ("given", "meant"), [(32, "32-true"), ("32", "32-true"), ("bf16", "bf16-mixed"), ("32-true", "32-true")]
    )
    def test_short_names_of_precisions(self, given: Any, meant: str) -> None:
        there = trainer(precision=given)
        assert there.settings.precision == there.described["precision"] == meant

    @pytest.mark.parametrize("given", [16, "16-mixed", "64-true", None])
    def test_other_precisions(self, given: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"precision .*: must be one of 32-true, bf16-mixed"):
            trainer(precision=given)

    def test_attributes(self) -> None:
        there = trainer()
        for name in ATTRIBUTES:
            assert not hasattr(there, name)
        with pytest.raises(AttributeError, match=r"has no 'checkpoint_callback': checkpoints/ of trainer\.run_dir"):
            _ = there.checkpoint_callback.best_model_path  # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match=r"^FederatedTrainer has no 'callback_metric'$"):
            _ = there.callback_metric  # type: ignore[attr-defined]

    def test_callback_metrics(self) -> None:
        seen: list[dict[str, Any]] = []

        class Looks(RoundCallback):
            def on_round_end(self, trainer: Any, record: Any) -> None:
                seen.append({name: value.item() for name, value in trainer.callback_metrics.items()})
                assert seen[-1]["val_loss"] == seen[-1]["fp/val_loss"]
                assert seen[-1]["quantized/val_loss"] == pytest.approx(record.metrics["quantized/val_loss"])

        there = trainer(callbacks=Looks(), scheme="w4a8", max_rounds=2)
        there.writes_model = False
        assert there.callback_metrics == {}
        there.fit(SmallModule(), SmallData())
        last = {name: value.item() for name, value in there.callback_metrics.items()}
        assert last == seen[-1] != seen[-2]
        assert last["train_loss"] == last["train/train_loss"]
        there.test()
        assert set(there.callback_metrics) == {"fp/test_loss", "quantized/test_loss", "test_loss"}
