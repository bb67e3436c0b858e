"""Every kind of bad input: one line that helps, exit code 2, nothing left behind."""

import gzip
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from fedhq_lightning.cli.main import main
from fedhq_lightning.federated import algorithms

from ..small_recipe import ABSENT, write_recipe
from ..trainer.conftest import make_quick

USER = "tests.user_code"
PARTITIONER = "data.init_args.partitioner"
DATASET = "data.init_args.datamodule"
ALLOCATOR = "trainer.callbacks.0"
ALGORITHMS = ", ".join(algorithms.__all__)
DIRICHLET_TAKES = "num_partitions, partition_by, alpha, min_partition_size, self_balancing, shuffle, seed"
MLP_TAKES = "in_channels, image_size, num_classes, hidden_sizes, lr, momentum, weight_decay"


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fedhq` adds the working directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is not deployed."""
    make_quick(monkeypatch)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `fedhq` says when it refuses; checks what all refusals share. No run directory stays in `runs/RECIPE/`."""
    before = sorted(Path.cwd().rglob("*"))
    try:
        code: Any = main(arguments)
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert captured.err.count("\n") == 1, "one line, no traceback"
    # Python itself leaves a __pycache__ beside a module of the user's own.
    left = [path for path in Path.cwd().rglob("*") if path not in before and "__pycache__" not in path.parts]
    assert [path for path in left if path != Path.cwd() / "runs" and path.parent != Path.cwd() / "runs"] == []
    return captured.err.removeprefix("fedhq: ").rstrip("\n")


def check(expected: str, given: str) -> None:
    """Equal, where `...` in `expected` stands for what a library or the machine words."""
    pattern = ".+".join(map(re.escape, expected.split("...")))
    assert re.fullmatch(pattern, given), given


def user(name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"{USER}.{name}", "init_args": init_args}


# what is changed in the recipe, and what is said
IN_A_RECIPE: dict[str, tuple[dict[str, Any], str]] = {
    # unknown keys
    "key at the top": ({"trainr": {"seed": 1}}, "unknown key 'trainr'; did you mean 'trainer'?"),
    "empty key at the top": ({"trainr": {}}, "unknown key 'trainr'; did you mean 'trainer'?"),
    "key unlike any other": ({"zzz": 1}, "unknown key 'zzz'; allowed are model, data, trainer"),
    "key of the trainer": (
        {"trainer.max_round": 3},
        "unknown key 'trainer.max_round'; did you mean 'trainer.max_rounds'?",
    ),
    "key of the model": (
        {"model.init_args.imagesize": 8},
        f"model: MLP has no 'imagesize'; it takes {MLP_TAKES}; did you mean 'image_size'?",
    ),
    "key of a model that passes its arguments on": (
        {"model": user("DigitsMLP", momentun=0.5)},
        f"model: DigitsMLP has no 'momentun'; it takes {MLP_TAKES}; did you mean 'momentum'?",
    ),
    "key of the data": (
        {"data.init_args.partitoner": 1},
        "data: PartitionedDataModule has no 'partitoner'; it takes datamodule, partitioner, label_fn, "
        "client_holdout, holdout_seed; did you mean 'partitioner'?",
    ),
    "key of the wrapped data": (
        {f"{DATASET}.init_args": {"batchsize": 8}},
        "data.datamodule: Digits has no 'batchsize'; it takes batch_size; did you mean 'batch_size'?",
    ),
    "key of the partitioner": (
        {f"{PARTITIONER}.init_args.alfa": 1},
        f"data.partitioner: DirichletPartitioner has no 'alfa'; it takes {DIRICHLET_TAKES}; did you mean 'alpha'?",
    ),
    "key of a callback": (
        {f"{ALLOCATOR}.init_args.alocation": 1},
        "trainer.callbacks: FixedAllocator has no 'alocation'; it takes allocation, by; did you mean 'allocation'?",
    ),
    "key of the scheme": (
        {"trainer.scheme": {"scheme": "w4a8", "overides": {"*": "fp"}}},
        "trainer.scheme: QuantScheme has no 'overides'; it takes scheme, edge_bits, overrides; did you mean "
        "'overrides'?",
    ),
    "empty key of the scheme": (
        {"trainer.scheme": {"scheme": "w4a8", "overides": {}}},
        "unknown key 'trainer.scheme.overides'; did you mean 'trainer.scheme.overrides'?",
    ),
    "key beside class_path": (
        {"model.lr": 0.1},
        "model: unknown key 'lr' beside class_path; arguments of a class belong under init_args",
    ),
    "init_args misspelt": (
        {f"{ALLOCATOR}.init_arg": {}},
        "trainer.callbacks: unknown key 'init_arg' beside class_path; did you mean 'init_args'?",
    ),
    "argument missing": (
        {f"{PARTITIONER}.init_args.alpha": ABSENT},
        "data.partitioner: alpha is missing; give it in init_args",
    ),
    "model missing": ({"model": ABSENT}, "model is missing; give it by class_path and init_args"),
    "data missing": ({"data": ABSENT}, "data is missing; give it by class_path and init_args"),
    # wrong types and values
    "text for a number": ({"trainer.max_rounds": "many"}, "trainer.max_rounds 'many': must be a whole number"),
    "fraction for a whole number": ({"trainer.max_rounds": 2.5}, "trainer.max_rounds 2.5: must be a whole number"),
    "text for a truth value": (
        {"trainer.enable_progress_bar": "maybe"},
        "trainer.enable_progress_bar 'maybe': must be true or false",
    ),
    "no such choice": (
        {"trainer.uplink": "weight"},
        "trainer.uplink 'weight': must be one of 'weights', 'delta'; did you mean 'weights'?",
    ),
    "no such choice in a callback": (
        {f"{ALLOCATOR}.init_args.allocation": "qatt"},
        "trainer.callbacks.allocation 'qatt': must be one of 'fp', 'ptq', 'qat' or a number or a mapping; did you mean "
        "'qat'?",
    ),
    "text for a model's number": ({"model.init_args.lr": "fast"}, "model.lr 'fast': must be a number"),
    "text for a model's list": ({"model.init_args.hidden_sizes": 8}, "model.hidden_sizes 8: must be a list"),
    "text for a partitioner's number": (
        {f"{PARTITIONER}.init_args.num_partitions": "x"},
        "data.partitioner.num_partitions 'x': must be a whole number",
    ),
    "zero rounds": ({"trainer.max_rounds": 0}, "trainer.max_rounds 0: must be a whole number, 1 or more"),
    "zero examples in a batch": (
        {f"{DATASET}.init_args": {"batch_size": 0}},
        "data.datamodule.batch_size 0: must be 1 or more",
    ),
    "epochs and steps": (
        {"trainer.local_epochs": 1},
        "trainer.local_epochs and local_steps are both given; set one of them to null",
    ),
    "value that a user's class refuses": (
        {"model": user("RefusesItsValues", depth=9)},
        "RefusesItsValues: depth 9 is too deep (--debug shows where)",
    ),
    "no such accelerator": (
        {"trainer.accelerator": "gpuu"},
        "trainer.accelerator 'gpuu', devices 1, strategy 'auto': ...",
    ),
    "strategy that starts processes in another way": (
        {"trainer.strategy": "ddp_spawn", "trainer.devices": 2, "trainer.accelerator": "cpu"},
        "trainer.strategy 'ddp_spawn' starts processes by spawn, which cannot work here; take 'auto' or 'ddp', which "
        "run the script once a process (in a notebook: devices=1)",
    ),
    # classes
    "class misspelt": (
        {"model.class_path": "fedhq_lightning.models.MLPP"},
        "model: fedhq_lightning.models has no 'MLPP'; did you mean 'MLP'?",
    ),
    "no such module": (
        {"model.class_path": "nowhere.MLP"},
        "model: no module 'nowhere' is installed or in the current directory",
    ),
    "class without its module": (
        {"trainer.callbacks": [{"class_path": "FixedAlocator"}]},
        "trainer.callbacks: 'FixedAlocator' is no class; give its whole path, such as package.module.Class; did you "
        "mean 'fedhq_lightning.callbacks.FixedAllocator'?",
    ),
    "partitioner misspelt": (
        {f"{PARTITIONER}.class_path": "flwr_datasets.partitioner.DirichletPartitione"},
        "data.partitioner: flwr_datasets.partitioner has no 'DirichletPartitione'; did you mean "
        "'DirichletPartitioner'?",
    ),
    "class of another kind": (
        {"model": {"class_path": "fedhq_lightning.data.Digits"}},
        "model: fedhq_lightning.data.Digits is not a LightningModule",
    ),
    "data without clients": (
        {"data": {"class_path": "fedhq_lightning.data.Digits"}},
        "data: fedhq_lightning.data.Digits is not a FederatedDataModule",
    ),
    "callback of Lightning's": (
        {"trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {}}]},
        "trainer.callbacks: lightning.pytorch.callbacks.Timer is not a RoundCallback",
    ),
    # schemes
    "bits out of range": (
        {"trainer.scheme": "w9a8"},
        "trainer.scheme 'w9a8': weight bits must be 2..8; did you mean 'w8a8'?",
    ),
    "no scheme": (
        {"trainer.scheme": "8bit"},
        "trainer.scheme '8bit': allowed are w<weight bits>, w<weight bits>a<activation bits>, the latter with s for "
        "static ranges, and each with -g<group size>, such as w4a8, w8a8, w3a4, w4, w8a8s or w3a8-g32",
    ),
    "number for a scheme": ({"trainer.scheme": 8}, "trainer.scheme 8: must be text or QuantScheme or null"),
    "group that does not divide": (
        {"trainer.scheme": "w4a8-g48", "model.init_args.hidden_sizes": [32, 32]},
        "trainer.scheme 'w4a8-g48': a group of 48 does not divide the 32 inputs of layer 'layers.3' (divisors near it: "
        "4, 8, 16, 32); choose another group or give the layer its own scheme in overrides",
    ),
    "override for no layer": (
        {"trainer.scheme": {"scheme": "w4a8", "overrides": {"head": "fp"}}},
        "override 'head' matches no layer; quantizable layers are layers.1, layers.3",
    ),
    "no scheme for an allocator": (
        {"trainer.scheme": None},
        "FixedAllocator may put clients into PTQ or QAT, but trainer.scheme is not set; give a scheme such as 'w4a8', "
        "or leave the allocator out to train in fp",
    ),
    "nothing to quantize": (
        {"model": user("NothingToQuantize")},
        "NothingToQuantize has nothing to quantize under scheme 'w4a8': no nn.Linear, nn.Conv1d or nn.Conv2d layer "
        "(subclasses and normed weights do not count); leave the scheme out to train in fp",
    ),
    # clients and their data
    "cohort larger than the clients": (
        {"trainer.clients_per_round": 40},
        "trainer.clients_per_round 40: must be 1..4, the clients that hold data; lower it or register more clients",
    ),
    "cohort of more than all": (
        {"trainer.clients_per_round": 1.5},
        "trainer.clients_per_round 1.5: a fraction must be in (0, 1]; for a count give an integer",
    ),
    "no clients": (
        {"data": user("SizedClients", sizes=[])},
        "no clients: the data module's client_ids is empty; register at least one client",
    ),
    "all clients empty": (
        {"data": user("SizedClients", sizes=[0, 0])},
        "all 2 clients are empty: at least one must hold training examples",
    ),
    "labels missing": (
        {DATASET: user("UnlabelledDigits")},
        "DirichletPartitioner partitions by 'label', but _Bare of UnlabelledDigits shows no labels: looked for "
        "targets, ...; give label_fn, a function from an example to its label, or a partitioner without partition_by, "
        "such as IidPartitioner",
    ),
    "no such label function": (
        {"data.init_args.label_fn": "math.florr"},
        "data.label_fn: math has no 'florr'; did you mean 'floor'?",
    ),
    "alpha 0": (
        {f"{PARTITIONER}.init_args.alpha": 0},
        "DirichletPartitioner: Alpha values should be strictly greater than zero. ...",
    ),
    "partitions too small": (
        {f"{PARTITIONER}.init_args.min_partition_size": 1000},
        "DirichletPartitioner cannot partition these 1442 examples: ...; its min_partition_size is 1000 (10 unless "
        "given): set min_partition_size: 0 to allow small and empty clients, or raise alpha, or lower num_partitions",
    ),
    "no partitions": (
        {PARTITIONER: {"class_path": "flwr_datasets.partitioner.IidPartitioner", "init_args": {"num_partitions": 0}}},
        "IidPartitioner: The number of partitions must be greater than zero. ...",
    ),
    "data folder missing": (
        {DATASET: {"class_path": "fedhq_lightning.data.FashionMNIST", "init_args": {"root": "nowhere"}}},
        "FashionMNIST root 'nowhere': no such folder; give the folder that holds train-images-idx3-ubyte.gz and its "
        "three companions, or on Debian and Ubuntu install them with apt-get install dataset-fashion-mnist (...)",
    ),
    # what the module does
    "monitor that nobody logs": (
        {"trainer.monitor": "val_acuracy"},
        "trainer.monitor 'val_acuracy': nobody logs it; logged: val_loss, val_accuracy; did you mean 'val_accuracy'?",
    ),
    "monitor where nothing is logged": (
        {"model": user("SilentMLP")},
        "trainer.monitor 'val_accuracy': nobody logs it; logged: nothing",
    ),
    "manual optimization": (
        {"model": user("ManualOptimization")},
        "ManualOptimization: manual optimization (automatic_optimization = False) is not supported in federated "
        "training; return the loss from training_step and let configure_optimizers name one optimizer",
    ),
    "several optimizers": (
        {"model": user("TwoOptimizers")},
        "TwoOptimizers.configure_optimizers returned 2 optimizers; several optimizers need manual optimization, which "
        "federated training does not support; return one",
    ),
    "callback that refuses to start": (
        {"trainer.callbacks": [user("RefusesToStart")]},
        "RefusesToStart: needs another trainer",
    ),
    # fleets
    "no such fleet": (
        {"trainer.fleet": "mixd"},
        "unknown fleet 'mixd'; shipped are mixed, uniform; a path to a .yaml file or a list of devices works too; did "
        "you mean 'mixed'?",
    ),
    "no such device": (
        {"trainer.fleet": ["raspberry-pi-9"]},
        "unknown device 'raspberry-pi-9'; shipped are ..., and any path to a .yaml file works; did you mean "
        "'raspberry-pi-4'?",
    ),
    "deadline that nobody meets": (
        {"trainer.round_deadline": 1e-9},
        "trainer.round_deadline 1e-09 virtual seconds: every client would be late; the fastest needs ...; raise the "
        "deadline, shorten the local fit or take a faster fleet",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), IN_A_RECIPE.values(), ids=IN_A_RECIPE)
def test_in_a_recipe(capsys, tmp_path, changes, expected):
    write_recipe(tmp_path / "bad.yaml", changes)
    said = refusal(capsys, "run", "bad.yaml")
    check(f"recipe bad: {expected}", said)


UNCLIPPED = "--trainer.privacy={class_path: CentralPrivacy, init_args: {noise_multiplier: 1, clip_norm: 0, delta: .1}}"
ON_THE_COMMAND_LINE = {
    "--trainer.max_round=3": "unknown key 'trainer.max_round'; did you mean 'trainer.max_rounds'?",
    "--max_rounds=3": "unknown key 'max_rounds'; did you mean 'trainer.max_rounds'?",
    "--trainr.max_rounds=3": "unknown key 'trainr.max_rounds'; did you mean 'trainer.max_rounds'?",
    "--trainer.max_rounds=many": "trainer.max_rounds 'many': must be a whole number",
    "--trainer.max_rounds": "--trainer.max_rounds needs a value: --trainer.max_rounds=VALUE",
    "--trainer.scheme=w9a8": "trainer.scheme 'w9a8': weight bits must be 2..8; did you mean 'w8a8'?",
    "--model.imagesize=3": f"model: MLP has no 'imagesize'; it takes {MLP_TAKES}; did you mean 'image_size'?",
    "--model.init_args.imagesize=3": f"model: MLP has no 'imagesize'; it takes {MLP_TAKES}; did you mean 'image_size'?",
    "--model.lr=fast": "model.lr 'fast': must be a number",
    "--model=MLPP": "model: 'MLPP' is no class; give its whole path, such as package.module.Class; did you mean "
    "'fedhq_lightning.models.MLP'?",
    "--model=Foo": "model: 'Foo' is no class; give its whole path, such as package.module.Class; "
    "fedhq_lightning.models has MLP, CharTransformer, Classifier, LeNet5, MobileNetV2, ResNet20, TabularInput, "
    "TabularMLP, ViT",
    "--model=math": "model: 'math' is a module; name a class in it: math.CLASS",
    "--trainer.aggregator=Krum": "trainer.aggregator: 'Krum' is no class; give its whole path, such as "
    f"package.module.Class; fedhq_lightning.federated.algorithms has {ALGORITHMS}",
    "--trainer.aggregator=fedhq_lightning.federated.algorithms.Krum": "trainer.aggregator: "
    f"fedhq_lightning.federated.algorithms has no 'Krum'; it has {ALGORITHMS}",
    "--trainer.privacy=Central": "trainer.privacy: 'Central' is no class; give its whole path, such as "
    "package.module.Class; did you mean 'fedhq_lightning.federated.privacy.CentralPrivacy'?",
    UNCLIPPED: "CentralPrivacy clip_norm 0.0: must be above 0: nothing would be left of an update",
    "--trainer.robust_rule=Krumm": "trainer.robust_rule: 'Krumm' is no class; give its whole path, such as "
    "package.module.Class; did you mean 'fedhq_lightning.federated.robust.Krum'?",
    "--trainer.robust_rule=TrimmedMean": "trainer.robust_rule: num_attackers is missing; give it in init_args",
    '--trainer.robust_rule={"class_path": "Bulyan", "init_args": {"num_attackers": 1}}': "Bulyan takes "
    "4 * num_attackers + 3 = 7 updates or more, and a cohort has 2 clients; raise clients_per_round, or lower what the "
    "rule is to withstand",
    "--data.partitioner.alfa=3": "data.partitioner: DirichletPartitioner has no 'alfa'; it takes "
    f"{DIRICHLET_TAKES}; did you mean 'alpha'?",
    "--trainer.callbacks.alocation=1": "trainer.callbacks: FixedAllocator has no 'alocation'; it takes allocation, by; "
    "did you mean 'allocation'?",
    "--trainer.callbacks=FixedAlocator": "trainer.callbacks: 'FixedAlocator' is no class; give its whole path, such as "
    "package.module.Class; did you mean 'fedhq_lightning.callbacks.FixedAllocator'?",
    "extra": "unknown argument 'extra': a value is changed by --KEY=VALUE, such as --trainer.max_rounds=5",
    "-x": "unknown argument '-x': a value is changed by --KEY=VALUE, such as --trainer.max_rounds=5",
}


@pytest.mark.parametrize(("override", "expected"), ON_THE_COMMAND_LINE.items(), ids=ON_THE_COMMAND_LINE)
def test_on_the_command_line(capsys, tmp_path, override, expected):
    write_recipe(tmp_path / "bad.yaml")
    check(f"recipe bad: {expected}", refusal(capsys, "run", "bad.yaml", override))


VALUES_OF_THE_TRAINER = {
    "--trainer.scheme=w9a8": "trainer.scheme 'w9a8': weight bits must be 2..8; did you mean 'w8a8'?",
    "--trainer.scheme={scheme: w4a8, overrides: {'*': w9}}": "override '*': scheme 'w9': weight bits must be 2..8...",
    "--trainer.max_rounds=0": "trainer.max_rounds 0: must be a whole number, 1 or more",
    "--trainer.fleet=mixd": "...mixd...did you mean 'mixed'?",
}


@pytest.mark.parametrize(("override", "expected"), VALUES_OF_THE_TRAINER.items(), ids=VALUES_OF_THE_TRAINER)
def test_show_refuses_what_run_refuses(capsys, tmp_path, override, expected):
    write_recipe(tmp_path / "bad.yaml")
    said = refusal(capsys, "show", "bad.yaml", override)
    check(f"recipe bad: {expected}", said)
    assert said == refusal(capsys, "run", "bad.yaml", override)


UNREADABLE = {
    "not YAML": ("model: [\n  a: b\n", "recipe bad: not readable as YAML, line 3: ..."),
    "tab": ("model:\n\tclass_path: x\n", "recipe bad: not readable as YAML, line 2: ..."),
    "empty": ("# only a comment\n", "recipe bad: holds nothing; a recipe has the keys model, data and trainer"),
    "list": ("- 1\n", "recipe bad: holds a list; a recipe has the keys model, data and trainer"),
    "not text": (b"\xff\xfe\x00", "recipe file bad.yaml: not UTF-8 text (byte 0)"),
}


@pytest.mark.parametrize(("content", "expected"), UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("command", ["run", "show"])
def test_unreadable_recipe(capsys, tmp_path, command, content, expected):
    (tmp_path / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    check(expected, refusal(capsys, command, "bad.yaml"))


@pytest.mark.parametrize("command", ["resume", "eval", "export", "report"])
def test_a_run_with_a_damaged_recipe(capsys, tmp_path, command):
    run_dir = tmp_path / "runs" / "mine" / "one"
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "model" / "model.pt2").touch()
    (run_dir / "rounds.jsonl").touch()
    (run_dir / "summary.json").write_text("{}")
    (run_dir / "recipe.yaml").write_bytes(b"\xff\xfe")
    said = refusal(capsys, command, "runs/mine/one")
    assert "recipe.yaml: not UTF-8 text" in said


COMMANDS = {
    ("run", "digit-smoke"): "unknown recipe 'digit-smoke': shipped are ..., a file of your own ends in .yaml; ...",
    ("run", "mine.yaml"): "recipe file mine.yaml: No such file or directory",
    ("cp", "digit-smoke"): "unknown recipe 'digit-smoke': ...did you mean 'digits-smoke'?",
    ("cp", "digits-smoke", "no/such/folder.yaml"): "no/such/folder.yaml cannot be written: No such file or directory; "
    "name another file",
    ("ls", "extra"): "unknown argument 'extra'; see fedhq ls --help",
    ("rn", "digits-smoke"): (
        "unknown command 'rn'; allowed are ls, cp, show, run, runs, resume, eval, export, report, profile, tune, "
        "compare, flower, completion; did you mean 'run'?"
    ),
    ("--verbose",): "unknown argument '--verbose'; see fedhq --help",
    ("run",): "the following arguments are required: NAME|FILE; see fedhq run --help",
    ("resume", "nowhere"): "resume nowhere: no such folder; give the directory of a run, such as "
    "runs/RECIPE/RUN, or its name (fedhq runs)",
    (
        "resume",
        "one",
        "--trainer.name=other",
    ): "resume one: --trainer.name: a run keeps the name that it began with; leave it out",
    ("resume", "."): "resume .: no recipe.yaml there; give the directory of a run, such as runs/RECIPE/RUN",
}


@pytest.mark.parametrize(("arguments", "expected"), COMMANDS.items(), ids=map(" ".join, COMMANDS))
def test_commands(capsys, arguments, expected):
    check(expected.replace("shipped are ..., a file", "shipped are ...; a file"), refusal(capsys, *arguments))


def idx(magic: int, *shape: int) -> bytes:
    size = 1
    for length in shape:
        size *= length
    return struct.pack(f">I{len(shape)}I", magic, *shape) + bytes(index % 7 for index in range(size))


IDX_FILES = {
    "train-images-idx3-ubyte": idx(2051, 40, 8, 8),
    "train-labels-idx1-ubyte": idx(2049, 40),
    "t10k-images-idx3-ubyte": idx(2051, 10, 8, 8),
    "t10k-labels-idx1-ubyte": idx(2049, 10),
}
BAD_IDX = {
    "truncated": (
        {"train-images-idx3-ubyte": IDX_FILES["train-images-idx3-ubyte"][:-5]},
        "'folder/train-images-idx3-ubyte': 2571 bytes, but 2576 belong there: the file is truncated; fetch it again",
    ),
    "wrong magic number": (
        {"train-labels-idx1-ubyte": idx(2051, 40, 1, 1)},
        "'folder/train-labels-idx1-ubyte': starts with the number 2051, not 2049: this is no IDX file of labels",
    ),
    "compressed and truncated": (
        {"t10k-images-idx3-ubyte": None, "t10k-images-idx3-ubyte.gz": gzip.compress(idx(2051, 10, 8, 8))[:-20]},
        "'folder/t10k-images-idx3-ubyte.gz': the compressed file is truncated; fetch it again",
    ),
    "one file missing": (
        {"t10k-labels-idx1-ubyte": None},
        "'folder/t10k-labels-idx1-ubyte': no such file, neither plain nor with .gz",
    ),
}


@pytest.mark.parametrize(("files", "expected"), BAD_IDX.values(), ids=BAD_IDX)
def test_idx_files(capsys, tmp_path, files, expected):
    (tmp_path / "folder").mkdir()
    for name, content in (IDX_FILES | files).items():
        if content is not None:
            (tmp_path / "folder" / name).write_bytes(content)
    fashion = {"class_path": "fedhq_lightning.data.FashionMNIST", "init_args": {"root": "folder"}}
    write_recipe(tmp_path / "bad.yaml", {DATASET: fashion})
    check(f"recipe bad: {expected}", refusal(capsys, "run", "bad.yaml"))


def test_sound_idx_files_run(capsys, tmp_path):
    """The refusals above come from what was broken."""
    (tmp_path / "folder").mkdir()
    for name, content in IDX_FILES.items():
        (tmp_path / "folder" / name).write_bytes(content)
    fashion = {"class_path": "fedhq_lightning.data.FashionMNIST", "init_args": {"root": "folder"}}
    changes = {DATASET: fashion, "trainer.max_rounds": 1, "trainer.clients_per_round": 1}
    write_recipe(tmp_path / "good.yaml", changes)
    assert main(["run", "good.yaml"]) == 0


@pytest.mark.parametrize("place", ["file", "read_only"])
def test_run_directory_that_cannot_be_written(capsys, tmp_path, place):
    write_recipe(tmp_path / "bad.yaml")
    # Root may write into any ordinary folder, so a file stands where the folder should be, and /proc refuses everyone.
    (tmp_path / "taken").write_text("a file")
    root = "taken" if place == "file" else "/proc/runs"
    said = refusal(capsys, "run", "bad.yaml", f"--trainer.default_root_dir={root}")
    check(
        f"recipe bad: the run directory {root}/bad/... cannot be written (...); set trainer.default_root_dir to a "
        "folder that can",
        said,
    )


def test_online_tracking_without_a_key(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    write_recipe(tmp_path / "bad.yaml", {"trainer.logger": True})
    said = refusal(capsys, "run", "bad.yaml")
    check("recipe bad: WANDB_MODE is online, but no API key for ... is known: run `wandb login`, ...", said)


def test_empty_client_among_others_is_left_out(capsys, tmp_path):
    write_recipe(tmp_path / "empty.yaml", {"data": user("SizedClients", sizes=[20, 0, 20])})
    assert main(["run", "empty.yaml"]) == 0
    assert capsys.readouterr().err == ("fedhq: warning: 1 of 3 clients hold no examples and are left out: 1\n")


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("command", ["run", "tune"])
def test_a_warning_of_the_users_own_code_is_a_line_and_told_once(capsys, tmp_path, command):
    write_recipe(tmp_path / "warns.yaml", {"model": {"class_path": f"{USER}.WarningMLP"}})
    with (tmp_path / "warns.yaml").open("a") as file:
        file.write("tune: {trials: 2, search: {model.lr: [0.1, 0.2]}}\n")
    overrides = ["--trainer.enable_progress_bar=false"] if command == "run" else []
    assert main([command, "warns.yaml", *overrides]) == 0
    assert capsys.readouterr().err == "fedhq: warning: a pixel is missing\n"


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory):
    """Directory of a run of the small recipe."""
    root = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "path", list(sys.path))
        make_quick(patch)
        write_recipe(root / "mine.yaml", {"trainer.max_rounds": 1})
        assert main(["run", "mine.yaml"]) == 0
    return next((root / "runs" / "mine").iterdir())


@pytest.fixture
def finished_run(kept_run, tmp_path):
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(kept_run, tmp_path / "runs" / "mine" / kept_run.name))


EDITS = {
    "lr: 0.1": ("lr: 0.2", "model.init_args.lr was 0.1, is now 0.2"),
    "- 16": ("- 32", "model.init_args.hidden_sizes.0 was 16, is now 32"),
    "alpha: 1.0": ("alpha: 0.5", "data.init_args.partitioner.init_args.alpha was 1.0, is now 0.5"),
    "scheme: w4a8": ("scheme: w3a8", "trainer.scheme was 'w4a8', is now 'w3a8'"),
    "allocation: 0.5": ("allocation: ptq", "trainer.callbacks.0.init_args.allocation was 0.5, is now 'ptq'"),
}


def test_resuming_with_another_recipe(capsys, finished_run):
    recipe = finished_run / "recipe.yaml"
    text = recipe.read_text()
    for before, (after, expected) in EDITS.items():
        assert before in text
        recipe.write_text(text.replace(before, after, 1))
        files = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
        check(
            f"resume {finished_run}: resuming with another recipe: {expected}; resume with the run's own recipe, or "
            "start a new run",
            refusal(capsys, "resume", str(finished_run)),
        )
        assert files == {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    recipe.write_text(text)
    said = refusal(capsys, "resume", str(finished_run), "--trainer.seed=1")
    check(f"resume {finished_run}: resuming with another recipe: trainer.seed was 0, is now 1; ...", said)
    # What changes no bit is free, and so is the recipe as it was.
    assert main(["resume", str(finished_run), "--trainer.enable_progress_bar=false"]) == 0


def test_resuming_without_a_checkpoint(capsys, finished_run):
    for checkpoint in (finished_run / "checkpoints").iterdir():
        checkpoint.unlink()
    check(
        "resume ...: ...: nothing to resume from: its rounds are in rounds.jsonl, but its checkpoints are gone; "
        "put them back, or start a new run",
        refusal(capsys, "resume", str(finished_run)),
    )


def test_resuming_from_a_damaged_checkpoint(capsys, finished_run):
    for checkpoint in (finished_run / "checkpoints").glob("round-*.ckpt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    check(
        "resume ...: .../round-000001.ckpt: damaged, or no checkpoint (BadZipFile: ...); .../round-000000.ckpt: "
        "damaged, ...; there is no other: put one back, or start a new run",
        refusal(capsys, "resume", str(finished_run)),
    )


@pytest.mark.parametrize("arguments", [("--debug", "run", "bad.yaml"), ("run", "bad.yaml", "--debug")])
def test_debug_shows_the_traceback(capsys, tmp_path, arguments):
    write_recipe(tmp_path / "bad.yaml", {"trainer.scheme": "w9a8"})
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "scheme.py" in shown, "down to where it was raised"
    assert "ConfigurationError: recipe bad: trainer.scheme 'w9a8': weight bits must be 2..8" in shown


def test_a_mistake_in_user_code_is_told_from_its_own_lines(capsys, tmp_path):
    write_recipe(tmp_path / "mine.yaml", {"model": user("Broken")})
    assert main(["run", "mine.yaml"]) == 1
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "fedhq: your own code failed; --debug shows the whole traceback"
    assert [line.split()[-1] for line in lines if "File " in line] == ["training_step"], "no frame but the user's"
    assert "user_code.py" in lines[0]
    assert lines[-2:] == [
        "ZeroDivisionError: a mistake of the user's own",
        "while the first batch of client 0 was tried, before round 1",
    ]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model": user("Broken")}, 1, "your own code failed"),
        ({"trainer.scheme": "w9a8"}, 2, "recipe mine: trainer.scheme"),
    ],
)
def test_a_mistake_of_a_later_process_alone_is_told(capsys, tmp_path, monkeypatch, changes, code, words):
    """The first one goes on, waiting for it; this test's own parent stands for it."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning would have found it when it was imported
    write_recipe(tmp_path / "mine.yaml", changes)
    assert main(["run", "mine.yaml"]) == code
    assert capsys.readouterr().err.startswith(f"fedhq: process 1: {words}")


def test_a_mistake_in_the_rounds_names_round_and_client(capsys, tmp_path):
    write_recipe(tmp_path / "mine.yaml", {"model": user("BreaksInRounds")})
    assert main(["run", "mine.yaml"]) == 1
    *_, raised, where, who = capsys.readouterr().err.splitlines()
    assert raised == "ZeroDivisionError: a mistake that the first batch does not show"
    assert re.fullmatch(r"while client \d+ trained in (ptq|qat), in round 1", where)
    assert who == "all 2 clients failed in round 1"


def test_debug_raises_a_mistake_in_user_code(tmp_path):
    write_recipe(tmp_path / "mine.yaml", {"model": user("Broken")})
    with pytest.raises(ZeroDivisionError, match="a mistake of the user's own"):
        main(["run", "mine.yaml", "--debug"])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import lightning as L\nclass Net(L.LightningModule:\n", "line 2: SyntaxError: "),
        ("import lightnin\n", "line 1: ModuleNotFoundError: No module named 'lightnin'"),
        ("\nvalue = undefined\n", "line 2: NameError: name 'undefined' is not defined"),
    ],
)
def test_a_module_of_ones_own_that_cannot_be_imported(capsys, tmp_path, monkeypatch, request, code, said):
    monkeypatch.chdir(tmp_path)
    name = f"own_{abs(hash(code))}"
    Path(f"{name}.py").write_text(code)
    found = refusal(capsys, "run", "digits-smoke", f"--model={name}.Net")
    assert found.startswith(f"recipe digits-smoke: model: {name}.py, {said}")


def test_a_run_that_used_no_update_is_no_success(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(Path("mine.yaml"), {"model": user("Diverges")})
    assert main(["run", "mine.yaml"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"fedhq: none of \d+ rounds had a usable update, so the model is untrained and not written; .*", said
    )
    assert not list(Path().rglob("model"))
