"""`fedhq flower`: the folder, and what is refused before anything is written."""

import tomllib
from pathlib import Path

import pytest
import yaml

from fedhq_lightning.cli.main import main

from ..small_recipe import changed, write_recipe

PRIVACY = " --trainer.privacy.".join(["LocalPrivacy", "noise_multiplier=1", "max_grad_norm=1", "delta=1e-5"])


def test_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, folder = write_recipe(tmp_path / "My recipe.yaml"), tmp_path / "app"
    assert main(["flower", str(recipe), str(folder), "--trainer.max_rounds=7"]) == 0
    assert capsys.readouterr().out.startswith(f"{folder} written; run it with: flwr run ")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "my-recipe"
    app = project["tool"]["flwr"]["app"]
    assert app["config"]["runs"] == str(Path("runs").resolve())
    for half in ("server", "client"):
        module, _, name = app["components"][f"{half}app"].partition(":")
        lines = (folder / f"{module.replace('.', '/')}.py").read_text().splitlines()
        assert (name, lines[-1]) == ("app", f'app = {half}_app(__file__, "my-recipe.yaml")')
    written = yaml.safe_load((folder / "my_recipe_app" / "my-recipe.yaml").read_text())
    assert written == changed({"trainer.max_rounds": 7})


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "mine.yaml")
    assert main(["flower", str(recipe), str(tmp_path)]) == 2
    assert "is there already; name another folder, or remove it" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("personal_layers=[layers.3.*]", "personal_layers"),
        ("ditto=0.1", "ditto"),
        ("aggregator=FedBuff", "aggregator FedBuff"),
        ("secure_aggregation=SecureAggregation --trainer.max_norm_ratio=null", "secure_aggregation"),
        (f"privacy={PRIVACY}", "privacy"),
        ("fine_tuning=FineTuning", "fine_tuning"),
        ("evaluate_clients=true", "evaluate_clients"),
        ("devices=2", "devices"),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_what_does_not_work_with_clients_on_nodes_is_refused_by_name(
    flag: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = write_recipe(tmp_path / "mine.yaml"), tmp_path / "app"
    assert main(["flower", str(recipe), str(folder), *f"--trainer.{flag}".split()]) == 2
    assert f"{named}: does not work with clients on nodes yet, since " in capsys.readouterr().err
    assert not folder.exists()
