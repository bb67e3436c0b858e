"""Where a run goes and what it reads, however the user writes it."""

import os
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.data import FashionMNIST
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import SmallData, SmallModule, trainer


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("MINE", str(folder))
    monkeypatch.delenv("UNSET", raising=False)
    return folder


def ran(ckpt_path: Any = None, **settings: Any) -> FederatedTrainer:
    there = trainer(max_rounds=1, **settings)
    there.writes_model = False
    there.fit(SmallModule(), SmallData(), ckpt_path)
    return there


@pytest.mark.parametrize("root", ["~/my runs/", "$MINE/my runs", Path("~/my runs")])
def test_home_and_environment(home: Path, root: Any) -> None:
    run = ran(default_root_dir=root).run_dir
    assert run.parent == home / "my runs" / "smallmodule"
    assert os.listdir(".") == ["home"]
    name = run.relative_to(home)
    for spelt in (
        f"~/{name}",
        f"$MINE/{name}/",
        Path("~") / name / "checkpoints",
        run / "checkpoints/round-000001.ckpt",
    ):
        assert ran(spelt).run_dir == run


def test_from_within_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ran().run_dir.resolve()
    monkeypatch.chdir(run / "checkpoints")
    assert ran("round-000001.ckpt").run_dir.resolve() == run
    assert ran(".").run_dir.resolve() == run
    monkeypatch.chdir(run)
    assert ran("checkpoints").run_dir.resolve() == run


@pytest.mark.parametrize("root", ["$UNSET/runs", "${oc.env:HOME}/runs", "~nobody-here/runs"])
def test_what_is_not_resolved_makes_no_folder(root: str) -> None:
    for ask in (lambda: trainer(default_root_dir=root), lambda: ran(root), lambda: FashionMNIST(root=root)):
        with pytest.raises(ConfigurationError, match=r"is not set|is not resolved here|there is no user"):
            ask()
    assert os.listdir(".") == ["home"]


def test_a_run_is_the_same_by_what_is_read_not_by_how_it_is_spelt(home: Path) -> None:
    fleet = home / "mine.yaml"
    fleet.write_text("profiles: {raspberry-pi-4: 1}\n")
    run = ran(fleet="home/mine.yaml").run_dir
    for spelt in (str(fleet), fleet, "~/mine.yaml", "./home/mine.yaml"):
        ran(run, fleet=spelt)
    other = home / "other"
    other.mkdir()
    (other / "mine.yaml").write_text("profiles: {phone-snapdragon-855: 1}\n")
    with pytest.raises(ConfigurationError, match="resuming with another recipe"):
        ran(run, fleet=other / "mine.yaml")


def test_devices_named_in_a_fleet(home: Path) -> None:
    source = Path(__file__).parents[2] / "fedhq_lightning" / "devices" / "raspberry-pi-4.yaml"
    (home / "mine.yaml").write_text(source.read_text())
    (home / "fleet.yaml").write_text('profiles: {"~/mine.yaml": 1}\n')
    assert ran(fleet="~/fleet.yaml").settings.fleet == f"{home}/fleet.yaml"


def test_a_file_where_a_folder_is_wanted(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(
        ConfigurationError, match=r"cannot be written \(Not a directory\); set trainer\.default_root_dir"
    ):
        ran(default_root_dir="~/file")
