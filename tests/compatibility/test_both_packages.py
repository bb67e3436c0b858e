"""`import pytorch_lightning as L`: the same text of a module with the classes of the other package is the same run."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import pytorch_lightning as pl
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringModel
from pytorch_lightning.callbacks import ModelCheckpoint, StochasticWeightAveraging
from pytorch_lightning.demos import boring_classes
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FederatedAveraging, FixedAllocator, QuantizedTraining
from fedhq_lightning.drop_in.trainer_callback import TrainerCallback
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.run.checkpoint_file import load_checkpoint

from .. import small_federation
from ..beside_lightning import without_advice
from ..silos.silo_runs import one_silo
from ..small_federation import SmallData, examples, same_bits
from ..small_recipe import changed
from .demos import DemoData
from .other_package import again, styles_again
from .runs import LEFT_OUT, assert_ran, run, seeded, traces
from .styles import STYLES

pytestmark = LEFT_OUT
ALIKE = [
    "self.log in all its forms",
    "save_hyperparameters, and a module as an argument",
    "several validation loaders",
    "a log method of its own, which calls Lightning's",
    "no validation_step",
    "a LightningModule in another, which logs too",
    "layers made in configure_model",
    "gradients clipped in configure_gradient_clipping",
    "hooks around the step",
    "looks at the trainer everywhere",
]
SCHEME = QuantScheme("w4a8", edge_bits=None)


def small(package: Any) -> Any:
    """`SmallModule` on one of the packages."""
    return (small_federation if package is L else again(small_federation)).SmallModule()


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.usefixtures("no_program")
def test_the_same_run(name: str) -> None:
    states, summaries = [], []
    for style in (STYLES[name], styles_again()[name]):
        module = seeded(style.module)
        before = traces(module)
        there = run(module, style.data())
        assert_ran(there, module, before, exports=False, builds=style.builds)
        states.append(module.state_dict())
        summaries.append({key: there.summary[key] for key in ("metric_name", "metric_fp", "metric_quantized")})
    assert isinstance(module, pl.LightningModule)
    assert not isinstance(module, L.LightningModule)
    assert same_bits(*states)
    assert summaries[0] == summaries[1]


@pytest.mark.usefixtures("no_report")
def test_the_deployed_model_and_what_is_asked_of_the_trainer_afterwards() -> None:
    found = []
    for package in (L, pl):
        module, data = small(package), SmallData(sizes=(20, 13, 8))
        there = run(module, data)
        program = (there.run_dir / "model" / "model.pt2").stat().st_size
        loader = DataLoader(examples(8, 3).tensors[0], 4)
        predicted = torch.cat(there.predict(module, loader))
        found.append((program, predicted, there.validate(module, data), there.test(module, data)))
    (program, predicted, validated, tested), (other_program, other, also_validated, also_tested) = found
    assert abs(program - other_program) < 2000, "names of classes in the exported program"
    assert predicted.equal(other)
    assert (validated, tested) == (also_validated, also_tested)


@pytest.mark.usefixtures("no_program")
def test_a_demo(tmp_path: Path) -> None:
    module, reference = seeded(boring_classes.BoringModel), seeded(BoringModel)
    run(module, DemoData(BoringModel, tmp_path / "data"), scheme=SCHEME)
    run(reference, DemoData(BoringModel, tmp_path / "data"), scheme=SCHEME)
    assert same_bits(module.state_dict(), reference.state_dict())


@pytest.mark.parametrize("package", [L, pl], ids=["lightning", "pytorch_lightning"])
@pytest.mark.usefixtures("no_program")
def test_a_checkpoint_of_either_goes_on_in_the_federation(package: Any, tmp_path: Path) -> None:
    """What the module's own `load_from_checkpoint` gives is a module like any other."""
    module = small(package)
    alone = package.Trainer(
        accelerator="cpu", max_steps=0, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    alone.strategy.connect(module)
    alone.save_checkpoint(tmp_path / "small.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "small.ckpt")
    there = run(loaded, SmallData(), scheme=None, callbacks=None)
    assert there.summary["metric_name"] == "val_loss"
    described = load_checkpoint(next((there.run_dir / "checkpoints").iterdir()))["described"]["model"]
    assert {"lr": 0.1, "momentum": 0.9}.items() <= described.items()


USERS = """
import torch
from torch.utils.data import DataLoader
from PACKAGE import LightningDataModule, LightningModule

from fedhq_lightning.data import Digits


class Mine(LightningModule):
    def __init__(self, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def step(self, batch, name):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val_loss")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)


class MyDigits(LightningDataModule):
    def __init__(self, batch_size: int = 16):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        self.digits = Digits()

    def train_dataloader(self):
        return DataLoader(self.digits.train_dataset, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return self.digits.val_dataloader()
"""


def test_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Module, data module and logger by `class_path`; the last name alone is that of `lightning`'s class."""
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for package, logger in (("lightning", "CSVLogger"), ("pytorch_lightning", "pytorch_lightning.loggers.CSVLogger")):
        (tmp_path / f"mine_{package}.py").write_text(USERS.replace("PACKAGE", package))
        recipe = changed(
            {
                "model": {"class_path": f"mine_{package}.Mine", "init_args": {"lr": 0.2}},
                "data.init_args.datamodule": {"class_path": f"mine_{package}.MyDigits", "init_args": {"batch_size": 8}},
                "trainer.monitor": "val_loss",
                "trainer.logger": [{"class_path": logger, "init_args": {"save_dir": package}}],
                "trainer.enable_progress_bar": False,
            }
        )
        there, module, data = resolve("mine", yaml.safe_dump(recipe), ["--model.lr=0.3"]).instantiate()
        assert isinstance(module, L.LightningModule) is (package == "lightning")
        there.writes_model = False
        there.fit(module, data)
        [table] = Path(package).rglob("metrics.csv")
        found.append((module.state_dict(), there.summary["metric_quantized"], len(table.read_text().splitlines())))
    assert same_bits(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def fit_with(package: Any, callbacks: Any, **settings: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """Weights and metrics of a fit with callbacks in a package's own Trainer."""
    quiet = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
    module = small(package)
    with without_advice():
        there = package.Trainer(**(quiet | settings), callbacks=callbacks)
        torch.manual_seed(3)
        there.fit(module, DataLoader(examples(40, 1), 8, shuffle=True), DataLoader(examples(20, 2), 8))
    logged = {name: float(value) for name, value in there.callback_metrics.items() if "seconds" not in name}
    return module.state_dict(), logged


def test_quantized_training_in_either_trainer(tmp_path: Path) -> None:
    """Given alone, not in a list: then the Trainer asks whether it is a Callback of its own."""
    found = []
    for package in (L, pl):
        callback = QuantizedTraining("qat", "w4a8", dirpath=tmp_path / package.__name__)
        assert isinstance(callback, package.Callback)
        found.append(fit_with(package, callback))
        assert callback.deployed_path is not None
        assert callback.deployed_path.name == "model.pt2"
    assert same_bits(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert "quantized/val_loss" in found[0][1]


def test_a_silo_in_either_trainer() -> None:
    found = []
    for package in (L, pl):
        with one_silo() as settings:
            callbacks = [FederatedAveraging(scheme="w4a8", export=False), FixedAllocator("qat")]
            found.append(fit_with(package, callbacks, **settings))
    assert same_bits(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert found[0][1]["fedhq/silo_0/mode"] == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "auto"}, r"FederatedAveraging needs Trainer\(strategy='fedhq'\), got SingleDeviceStrategy"),
        ({"callbacks": [StochasticWeightAveraging(0.1)]}, "FederatedAveraging together with StochasticWeightAveraging"),
        ({"callbacks": [ModelCheckpoint(every_n_train_steps=1)]}, "ModelCheckpoint.every_n_train_steps"),
    ],
)
def test_what_a_silo_refuses_is_refused_in_the_other_trainer(settings: dict[str, Any], words: str) -> None:
    callbacks = [FederatedAveraging(scheme="w4a8", export=False), *settings.pop("callbacks", [])]
    with one_silo() as fedhq, pytest.raises(ConfigurationError, match=words):
        fit_with(pl, callbacks, **(fedhq | {"enable_checkpointing": True} | settings))


def test_silos_refuse_the_loops_of_an_older_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl, "__version__", "2.4.0")
    words = "FederatedAveraging in a Trainer of pytorch_lightning 2.4.0.*write `import lightning.pytorch as pl`"
    with one_silo() as fedhq, pytest.raises(ConfigurationError, match=words):
        fit_with(pl, [FederatedAveraging(scheme="w4a8", export=False)], **fedhq)


def test_a_callback_that_was_made_before_the_other_package_was_imported() -> None:
    """A class learns of it with the next object of it."""
    before = TrainerCallback.__bases__
    TrainerCallback.__bases__ = before[:1]
    assert not issubclass(QuantizedTraining, pl.Callback)
    made = QuantizedTraining("fp")
    assert isinstance(made, pl.Callback)
    assert isinstance(made, L.Callback)


def test_a_compiled_module_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="module: got a compiled SmallModule; give the LightningModule itself"):
        run(torch.compile(small(pl)), SmallData())  # type: ignore[arg-type]  # what is refused
