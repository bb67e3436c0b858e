"""Paths in recipes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhq_lightning.data import PartitionedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.launch.resolve import resolve

from ..small_federation import SmallData
from ..small_recipe import changed


class Reads(SmallData):
    """Data of a user's own, that takes paths as most do, and other text."""

    def __init__(self, data_dir: str = ".", extra: Path | None = None, title: str = "", table: Any = None) -> None:
        super().__init__()
        self.data_dir, self.extra, self.title, self.table = data_dir, extra, title, table


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.delenv("UNSET", raising=False)


def recipe(changes: dict[str, Any]) -> str:
    return yaml.safe_dump(changed(changes))


def own(**init_args: Any) -> dict[str, Any]:
    return {"data": {"class_path": f"{__name__}.Reads", "init_args": init_args}}


def test_what_is_a_path_is_written_out_and_what_is_not_stays(tmp_path: Path) -> None:
    text = recipe(own(data_dir="~/x", extra="$DATA/y", title="costs $DATA", table={"a": ["~"]}))
    resolved = resolve("small", text, ["--trainer.default_root_dir=~/my runs/"])
    trainer, _, data = resolved.instantiate()
    assert isinstance(data, Reads)
    assert data.data_dir == f"{tmp_path}/home/x"
    assert data.extra == tmp_path / "data" / "y"
    assert (data.title, data.table) == ("costs $DATA", {"a": ["~"]})
    assert trainer.default_root_dir == tmp_path / "home" / "my runs"


def test_the_record_can_be_run_again_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    given = resolve("small", recipe(own(data_dir="$DATA/x")), ["--trainer.default_root_dir=$DATA/runs"])
    monkeypatch.delenv("DATA")
    again = resolve("small", given.recipe.text)
    assert again.recipe.text == given.recipe.text
    assert "$" not in again.recipe.text


def test_shipped_parts(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "fleet.yaml").write_text("profiles: {raspberry-pi-4: 1}\n")
    text = recipe(
        {
            "trainer.fleet": "~/fleet.yaml",
            "trainer.callbacks": [
                {
                    "class_path": "fedhq_lightning.callbacks.HybridAllocator",
                    "init_args": {"warm_start": ["$DATA/run", "wandb:me/it/run"], "fleet": ["~/device.yaml"]},
                }
            ],
            "data.init_args.datamodule": {
                "class_path": "fedhq_lightning.data.FashionMNIST",
                "init_args": {"root": "~/idx"},
            },
        }
    )
    resolved = resolve("small", text)
    trainer, _, data = resolved.instantiate()
    assert isinstance(data, PartitionedDataModule)
    assert data.datamodule.root == tmp_path / "home" / "idx"
    assert trainer.settings.fleet == f"{tmp_path}/home/fleet.yaml"
    allocator: Any = trainer.allocator
    assert allocator.warm_start == [f"{tmp_path}/data/run", "wandb:me/it/run"]
    assert allocator.fleet == [f"{tmp_path}/home/device.yaml"]
    assert "~" not in resolved.recipe.text


@pytest.mark.parametrize(
    ("changes", "overrides", "told"),
    [
        ({}, ["--trainer.default_root_dir=$UNSET/x"], r"trainer\.default_root_dir '\$UNSET/x': \$UNSET is not set"),
        (own(data_dir="${oc.env:DATA}/x"), [], r"data\.data_dir .*oc\.env:DATA\} is not resolved here.* \$DATA"),
        (own(title="${a.b}"), [], r"data\.title '\$\{a\.b\}': \$\{a\.b\} is not resolved: recipes have no interp"),
        (own(table={"deep": ["x ${a}"]}), [], r"data\.table\.deep 'x \$\{a\}': \$\{a\} is not resolved"),
        ({"model.init_args.lr": "${lr}"}, [], r"model\.lr '\$\{lr\}': must be a number"),
        ({"trainer.monitor": "${metric}"}, [], r"trainer\.monitor '\$\{metric\}': \$\{metric\} is not resolved"),
        ({}, ["--trainer.callbacks.0.by=${x}"], "by"),
    ],
)
def test_unresolved_ones_are_refused_by_their_key(changes: dict[str, Any], overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        resolve("small", recipe(changes), overrides).instantiate()
    assert not Path("runs").exists()


def test_runs_may_be_given_by_their_names(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "digits" / "20250101-120000-00ab12-first-try"
    run.mkdir(parents=True)
    node = {
        "class_path": "HybridAllocator",
        "init_args": {"warm_start": ["first-try", "00ab12", "me/project/first-try", "nobody"]},
    }
    resolved = resolve("small", recipe({"trainer.callbacks": [node]}))
    kept = yaml.safe_load(resolved.recipe.text)["trainer"]["callbacks"][0]["init_args"]["warm_start"]
    assert kept == [str(run), str(run), "me/project/first-try", "nobody"]
    assert resolved.instantiate()[0].allocator.warm_start[2:] == ["me/project/first-try", "nobody"]
