"""A script with LightningCLI's commands: the keys of a recipe, and the run of it."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from lightning.pytorch.callbacks import EarlyStopping

from fedhq_lightning import FederatedCLI
from fedhq_lightning.cli.main import main
from fedhq_lightning.data import PartitionedDataModule
from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.models import MLP

from ..programs import run_program
from ..reliability.test_signals import only_run, weights
from ..small_recipe import SMALL, changed
from ..trainer.conftest import make_quick

MODEL = [f"--model.{key}={value}" for key, value in SMALL["model"]["init_args"].items()]


@pytest.fixture(autouse=True)
def _as_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


def config(*parts: str, **changes: Any) -> list[str]:
    """A file with parts of the small recipe, as an argument."""
    content = changed(changes)
    Path("config.yaml").write_text(yaml.safe_dump({part: content[part] for part in parts}))
    return ["--config", "config.yaml"]


def test_fits_to_the_bits_of_the_recipe() -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(SMALL))
    assert main(["run", "mine.yaml"]) == 0
    cli = FederatedCLI(MLP, args=["fit", *config("data", "trainer"), *MODEL])
    assert cli.trainer.run_dir.parent.name == "train"
    assert weights(cli.trainer.run_dir) == weights(only_run(Path("runs")))


def test_its_run_goes_on_from_the_command_line_and_from_the_script() -> None:
    given = ["fit", *config("model", "data", "trainer")]
    first, second = (FederatedCLI(args=given, name=name).trainer.run_dir for name in ("first", "second"))
    assert main(["resume", str(first), "--trainer.max_rounds=3"]) == 0
    FederatedCLI(args=[*given, "--trainer.max_rounds=3", f"--ckpt_path={second}"], name="second")
    assert weights(first) == weights(second)


def test_without_a_command_it_makes_trainer_model_and_data() -> None:
    class Mine(FederatedCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_argument("--width", type=int, default=5)
            parser.link_arguments("width", "model.hidden_sizes", compute_fn=lambda width: (width, width))

    given = [*config("trainer"), "--model.image_size=8", "--width=7", "--trainer.seed=3"]
    data = [f"--data={yaml.safe_dump(SMALL['data']['init_args'])}"]
    cli = Mine(MLP, PartitionedDataModule, run=False, args=[*given, *data], trainer_defaults={"max_rounds": 9})
    assert [layer.out_features for layer in cli.model.modules() if hasattr(layer, "out_features")] == [7, 7, 10]
    assert (cli.trainer.settings.seed, cli.trainer.settings.max_rounds) == (3, SMALL["trainer"]["max_rounds"])
    assert isinstance(cli.datamodule, PartitionedDataModule)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--trainer.scheme=w9a9", "scheme 'w9a9': weight bits must be 2..8"),
        ("--trainer.max_rounds=0", "max_rounds 0: must be"),
        ("--trainer.max_epochs=3", "max_epochs"),
        ("--ckpt_path=nothere", "nothere: nothing to resume from"),
    ],
)
def test_what_a_recipe_refuses_ends_the_script(given: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        FederatedCLI(args=["fit", *config("model", "data", "trainer"), given])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_classes_of_the_script_are_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        """
from fedhq_lightning import FederatedCLI
from fedhq_lightning.models import MLP

class Net(MLP):
    pass

if __name__ == "__main__":
    FederatedCLI(Net)
"""
    )
    done = run_program("train.py", "fit", *config("data", "trainer"), *MODEL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_dir,) = tmp_path.glob("runs/train/*")
    assert "class_path: train.Net" in (run_dir / "recipe.yaml").read_text()
    assert main(["resume", str(run_dir), "--trainer.max_rounds=3"]) == 0


def test_a_checkpoint_replaces_nothing_that_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["fit", *config("model", "data", "trainer")]
    run_dir = FederatedCLI(args=given).trainer.run_dir
    checkpoint = max(run_dir.glob("checkpoints/*.ckpt"))
    with pytest.raises(SystemExit) as ended:
        FederatedCLI(args=[*given, f"--ckpt_path={checkpoint}", "--model.lr=0.2", "--trainer.max_rounds=3"])
    assert ended.value.code == 2
    assert "lr" in capsys.readouterr().err


def test_a_run_that_comes_to_nothing_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Mine(FederatedCLI):
        def before_fit(self) -> None:
            self.trainer.fit = Mock(side_effect=RunError("no usable update"))

    with pytest.raises(SystemExit) as ended:
        Mine(args=["fit", *config("model", "data", "trainer")])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: no usable update\n"


@pytest.mark.parametrize(
    ("add", "settings", "said"),
    [
        (
            lambda parser: parser.add_lightning_class_args(EarlyStopping, "stop"),
            {},
            r"callbacks of the script \(stop\)",
        ),
        (None, {"trainer_defaults": {"callbacks": []}}, r"callbacks of the script \(trainer_defaults\)"),
        (
            lambda parser: parser.link_arguments(
                "data", "model.momentum", compute_fn=lambda _: 0.5, apply_on="instantiate"
            ),
            {},
            "the link to model.momentum is applied to objects",
        ),
    ],
    ids=["callback", "defaults", "link"],
)
def test_what_no_recipe_holds_is_refused(add: Any, settings: Any, said: str) -> None:
    class Mine(FederatedCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            if add is not None:
                add(parser)

    stop = ["--stop.monitor=val_accuracy"] if "stop" in said and "script" in said and add else []
    with pytest.raises(ConfigurationError, match=said):
        Mine(MLP, args=["fit", *config("data", "trainer"), *MODEL, *stop], **settings)


def test_callbacks_of_the_script() -> None:
    rounds = []

    class Counts(RoundCallback):
        def on_round_end(self, trainer: Any, record: Any) -> None:
            rounds.append(record.round)

    class Mine(FederatedCLI):
        def before_fit(self) -> None:
            self.trainer.callbacks.append(Counts())

    Mine(args=["fit", *config("model", "data", "trainer")])
    assert rounds == [0, 1, 2]
