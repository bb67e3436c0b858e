from dataclasses import asdict

import pytest
import torch
import yaml

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.data import PartitionedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.models import MLP
from fedhq_lightning.quantize import LaneOptions

from ..small_recipe import changed


def text_of(changes=None):
    return yaml.safe_dump(changed(changes or {}), sort_keys=False)


def test_instantiates_what_the_recipe_says():
    trainer, model, data = resolve("mine", text_of()).instantiate()
    assert (trainer.settings.max_rounds, str(trainer.settings.scheme), trainer.recipe.name) == (2, "w4a8", "mine")
    assert isinstance(trainer.allocator, FixedAllocator)
    assert isinstance(model, MLP)
    assert isinstance(data, PartitionedDataModule)
    assert data.partitioner._alpha is not None


def test_initial_weights_come_from_the_seed():
    def weights(*overrides):
        return next(resolve("mine", text_of(), overrides).instantiate()[1].parameters())

    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)
    assert torch.equal(first, weights())
    assert not torch.equal(first, weights("--trainer.seed=1"))


@pytest.mark.parametrize("override", [[], ["--trainer.lanes=null"], ["--trainer.lanes.range_lr=0.1"]])
def test_a_resolved_recipe_says_how_the_lanes_compute(override):
    resolved = resolve("mine", text_of(), override)
    lanes = yaml.safe_load(resolved.recipe.text)["trainer"]["lanes"]
    assert lanes == asdict(LaneOptions(range_lr=0.1 if "range_lr" in "".join(override) else 0.01))
    assert asdict(resolved.instantiate()[0].settings.lanes) == lanes


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("--trainer.max_rounds=5", "trainer.max_rounds", 5),
        ("--trainer.scheme=w8a8", "trainer.scheme", "w8a8"),
        ("--trainer.scheme=null", "trainer.scheme", None),
        ("--trainer.scheme.edge_bits=4", "trainer.scheme.edge_bits", 4),
        ("--model.lr=0.5", "model.init_args.lr", 0.5),
        ("--model.init_args.lr=0.5", "model.init_args.lr", 0.5),
        ("--model.hidden_sizes=[8,4]", "model.init_args.hidden_sizes", [8, 4]),
        ("--model=MLP", "model.class_path", "fedhq_lightning.models.MLP"),
        ("--model=fedhq_lightning.models.LeNet5", "model.class_path", "fedhq_lightning.models.LeNet5"),
        ("--data.partitioner.alpha=3", "data.init_args.partitioner.init_args.alpha", 3),
        ("--trainer.callbacks.allocation=ptq", "trainer.callbacks.0.init_args.allocation", "ptq"),
        ("--trainer.callbacks.FixedAllocator.allocation=ptq", "trainer.callbacks.0.init_args.allocation", "ptq"),
        ("--trainer.callbacks.0.allocation=0.25", "trainer.callbacks.0.init_args.allocation", 0.25),
        ("--trainer.callbacks+=fedhq_lightning.callbacks.EarlyStopping", "trainer.callbacks.1.init_args.patience", 5),
    ],
)
@pytest.mark.filterwarnings("ignore:kept from the recipe")
def test_overrides(override, key, expected):
    node = yaml.safe_load(resolve("mine", text_of(), [override]).recipe.text)
    for part in key.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    assert node == expected


def test_a_run_without_further_files_says_null():
    trainer, _, _ = resolve("mine", text_of(), ["--trainer.export=null"]).instantiate()
    assert trainer.settings.export == ()


def test_resolved_text_holds_every_key_and_resolves_to_itself():
    text = "# mine: a title\n# Run: fedhq run mine.yaml\n" + text_of() + "# a remark at the end\n"
    resolved = resolve("mine", text, ["--trainer.max_rounds=7"]).recipe.text
    assert resolved.startswith("# mine: a title\n# Run: fedhq run mine.yaml\nmodel:\n")
    assert "remark at the end" not in resolved, "only what opens the file says what the whole of it is"
    values = yaml.safe_load(resolved)["trainer"]
    assert (values["max_rounds"], values["downlink"], values["ema_decay"]) == (7, "fp32", None)
    assert resolve("mine", resolved).recipe.text == resolved


def test_relative_paths_are_kept_whole(tmp_path):
    """A run may go on from another folder."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mine.yaml").write_text("profiles: {phone: 1}\n")
    (tmp_path / "trace.csv").write_text("client,device\n")
    fashion = {"class_path": "fedhq_lightning.data.FashionMNIST", "init_args": {"root": "folder"}}
    here, fleet = str(tmp_path / "folder"), str(tmp_path / "mine.yaml")
    for given, kept in (
        ("mine.yaml", fleet),
        ("./mine.yaml", fleet),
        ("mixed", "mixed"),
        ("gone.yaml", "gone.yaml"),
        (["mine.yaml", "phone"], [fleet, "phone"]),
        ({"mine.yaml": 2, "phone": 1}, {fleet: 2, "phone": 1}),
        ("trace.csv", str(tmp_path / "trace.csv")),
        ("gone.csv", "gone.csv"),
    ):
        text = text_of({"data.init_args.datamodule": fashion, "trainer.fleet": given})
        content = yaml.safe_load(resolve("mine", text).recipe.text)
        assert content["trainer"]["fleet"] == kept
        assert content["data"]["init_args"]["datamodule"]["init_args"]["root"] == here
    allocator = {"class_path": "fedhq_lightning.callbacks.HybridAllocator"}
    allocator["init_args"] = {"fleet": ["mine.yaml", "phone"], "warm_start": ["folder", "team/project/run"]}
    content = yaml.safe_load(resolve("mine", text_of({"trainer.callbacks": [allocator]})).recipe.text)
    [kept] = content["trainer"]["callbacks"]
    assert kept["init_args"]["fleet"] == [fleet, "phone"]
    assert kept["init_args"]["warm_start"] == [here, "team/project/run"]
    fashion["init_args"]["root"] = "nowhere"
    content = yaml.safe_load(resolve("mine", text_of({"data.init_args.datamodule": fashion})).recipe.text)
    assert content["data"]["init_args"]["datamodule"]["init_args"]["root"] == "nowhere"


def test_errors_while_running_name_the_key():
    resolved = resolve("mine", text_of())
    with pytest.raises(ConfigurationError, match=r"^trainer\.monitor 'x': nobody logs it$"), resolved.keys_named():
        raise ConfigurationError("monitor 'x': nobody logs it")
    with pytest.raises(ConfigurationError, match=r"^data\.partitioner\.alpha 0: too small$"), resolved.keys_named():
        raise ConfigurationError("alpha 0: too small")
    # `seed` is the trainer's and the partitioner's.
    with pytest.raises(ConfigurationError, match=r"^seed 0: too small$"), resolved.keys_named():
        raise ConfigurationError("seed 0: too small")


def test_mistakes_in_constructors_pass_through(monkeypatch):
    """Only a ValueError means that given values are wrong."""

    def broken(self, *args, **kwargs):
        raise AttributeError("no attribute 'x'")

    resolved = resolve("mine", text_of())
    monkeypatch.setattr(MLP, "__init__", broken)
    with pytest.raises(AttributeError, match="no attribute 'x'"):
        resolved.instantiate()
