"""Words completed by Tab, as the shells ask for them."""

import os
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest

from fedhq_lightning import FederatedTrainer, QuantScheme, data, models
from fedhq_lightning.cli import key_completion
from fedhq_lightning.cli.main import main
from fedhq_lightning.deploy.formats import FORMATS
from fedhq_lightning.devices import Fleet
from fedhq_lightning.federated import algorithms
from fedhq_lightning.federated.client_errors import OnClientError
from fedhq_lightning.federated.wire import Downlink, Uplink
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.types import MonitorMode

COMPLETE = """
eval "$(fedhq completion bash)"
COMP_LINE=$1; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
read -ra COMP_WORDS <<< "$COMP_LINE"
[[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
declared=$(complete -p fedhq)
function=${declared##*-F }; function=${function%% *}
$function fedhq "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
word=${COMP_WORDS[COMP_CWORD]}
compgen -W "${COMPREPLY[*]}" -- "${word#--*=}"
"""
"""What bash does at Tab: call the function that was declared for the command, with the line in COMP_*."""


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`fedhq` as a shell finds it, in a folder without torch's import to pay for; the working directory stays empty."""
    folder = tmp_path.parent / f"{tmp_path.name}-bin"
    folder.mkdir()
    script = folder / "fedhq"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedhq_lightning.cli.main "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def completed(line: str) -> list[str]:
    done = subprocess.run(["bash", "--norc", "-c", COMPLETE, "bash", line], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [word.strip() for word in done.stdout.splitlines()]


@pytest.mark.usefixtures("on_path")
class TestBash:
    def test_commands(self) -> None:
        assert completed("fedhq re") == ["resume", "report"]
        assert "completion" in completed("fedhq ")

    def test_recipes_and_files(self, tmp_path: Path) -> None:
        (tmp_path / "digits-mine.yaml").touch()
        (tmp_path / "digits-notes.txt").touch()
        shipped = [name for name in recipe_files.shipped() if name.startswith("digits-")]
        assert sorted(completed("fedhq run digits-")) == sorted(["digits-mine.yaml", *shipped])
        assert sorted(completed("fedhq cp digits-")) == sorted(shipped)

    def test_run_directories_and_models(self, tmp_path: Path) -> None:
        for name in ("20250101-000000-aa", "20250102-000000-bb"):
            run = tmp_path / "runs" / "digits-smoke" / name
            run.mkdir(parents=True)
            (run / "recipe.yaml").touch()
        (tmp_path / "alone.pt2").touch()
        runs = {f"runs/digits-smoke/{name}" for name in ("20250101-000000-aa", "20250102-000000-bb")}
        for command in ("resume", "eval", "report"):
            assert set(completed(f"fedhq {command} runs/")) == runs
        assert completed("fedhq eval al") == ["alone.pt2"]

    def test_keys_of_the_recipe_and_of_the_trainer_wait_for_a_value(self) -> None:
        assert set(completed("fedhq run digits-smoke --model.")) == {"--model.image_size=", "--model.lr="}
        assert completed("fedhq show digits-smoke --trainer.sch") == ["--trainer.scheme="]
        assert completed("fedhq run no-such-recipe --trainer.max_r") == ["--trainer.max_rounds="]
        assert completed("fedhq ls --trainer.sch") == []

    @pytest.mark.parametrize(
        ("typed", "some"),
        [
            ("--trainer.scheme=w4", {"w4a8", "w4a8s", "w4"}),
            ("--trainer.aggregator=", {"FedAvg", "FedProx", "FedOpt"}),
            ("--trainer.callbacks=H", {"HybridAllocator"}),
            ("--trainer.fleet=", {"mixed", "uniform", "mine.yaml"}),
            ("--trainer.final_evaluation=", {"true", "false"}),
            ("--model=", {"fedhq_lightning.models.LeNet5"}),
            ("--data.datamodule=", {"fedhq_lightning.data.Digits"}),
        ],
    )
    def test_values(self, tmp_path: Path, typed: str, some: set[str]) -> None:
        (tmp_path / "mine.yaml").touch()
        assert some <= set(completed(f"fedhq run digits-smoke {typed}"))

    def test_allocators(self) -> None:
        assert set(completed("fedhq compare digits-smoke --allocators all-f")) == {"all-fp"}

    def test_options(self) -> None:
        assert completed("fedhq profile --w") == ["--write"]


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef fedhq"), ("fish", "complete")])
def test_each_shell_has_a_script(capsys: pytest.CaptureFixture[str], shell: str, mark: str) -> None:
    assert main(["completion", shell]) == 0
    assert mark in capsys.readouterr().out


def test_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "cmd"])
    assert ended.value.code == 2
    assert "invalid choice: 'cmd' (choose from 'bash', 'zsh', 'fish')" in capsys.readouterr().err


class TestWhatIsKnown:
    """By text alone; here beside what it is said about."""

    def test_arguments_of_the_trainer(self) -> None:
        assert set(key_completion.trainer_arguments()) == {
            f"trainer.{name}" for name in list(signature(FederatedTrainer.__init__).parameters)[1:]
        }

    @pytest.mark.parametrize("scheme", key_completion.SCHEMES)
    def test_schemes(self, scheme: str) -> None:
        QuantScheme.parse(scheme)

    @pytest.mark.parametrize(
        ("known", "allowed"),
        [
            (key_completion.UPLINKS, Uplink),
            (key_completion.DOWNLINKS, Downlink),
            (key_completion.ON_CLIENT_ERROR, OnClientError),
            (key_completion.MONITOR_MODES, MonitorMode),
        ],
    )
    def test_words(self, known: tuple[str, ...], allowed: Any) -> None:
        assert set(known) == set(get_args(allowed))

    def test_files_of_the_deployed_model(self) -> None:
        assert list(key_completion.values_of("trainer.export")) == list(FORMATS)

    @pytest.mark.parametrize("key", ["trainer.fleet", "trainer.round_lr", "trainer.precision"])
    def test_each_can_be_given(self, key: str) -> None:
        for value in key_completion.values_of(key):
            trainer = FederatedTrainer(**{key.removeprefix("trainer."): value}, accelerator="cpu")  # type: ignore[arg-type]
            Fleet.resolve(trainer.settings.fleet, 0)

    def test_data_with_clients_and_without(self) -> None:
        for name in data.__all__:
            if name not in ("FederatedDataModule", "CharacterDataModule", "TableForm"):
                has_clients = issubclass(getattr(data, name), data.FederatedDataModule)
                key = "data" if has_clients else "data.datamodule"
                assert f"fedhq_lightning.data.{name}" in key_completion.values_of(key)

    def test_shipped_names(self) -> None:
        assert key_completion.names_in("models/__init__.py") == models.__all__
        assert key_completion.names_in("data/__init__.py", "x.") == [f"x.{name}" for name in data.__all__]
        others = [name for name in algorithms.__all__ if name != "FedAvg"]
        assert key_completion.names_in("federated/algorithms/__init__.py", but=["FedAvg"]) == others
