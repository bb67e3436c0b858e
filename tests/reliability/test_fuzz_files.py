"""Whatever files hold: documented errors only, in under a second each, and without taking the memory."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhq_lightning.allocation.baselines import read_fits
from fedhq_lightning.allocation.warm_start import learned_by
from fedhq_lightning.data.idx import IMAGE_MAGIC, LABEL_MAGIC, read_idx
from fedhq_lightning.devices import Fleet
from fedhq_lightning.devices.device_profile import load_profile, shipped_file
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.run import Run

from ..mutations import attacked
from ..small_run import allotted_rounds, write_allocation, write_run

Reader = Callable[[bytes], object]
"""Of one input."""
Kind = Callable[[], tuple[Reader, Sequence[bytes]]]
"""Makes a reader, and sound inputs for it; called in an empty folder."""
MOST_MEGABYTES = 256
"""That reading a damaged file of a few kilobytes may take; what files may hold is limited to several times as much."""


def fresh(name: str, content: bytes) -> Path:
    """A file of that content. Not written over: a reader may have a lock or a length of the one before in mind."""
    path = Path(name)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def recipe() -> tuple[Reader, Sequence[bytes]]:
    """`fedhq show`: read, checked, resolved, its fleet read; nothing of others imported."""
    from fedhq_lightning.launch.import_policy import only_trusted_imports
    from fedhq_lightning.launch.resolve import as_written, resolve
    from fedhq_lightning.recipe import files

    def read(content: bytes) -> None:
        name, text = files.find(str(fresh("a.yaml", content)))
        as_written(text, ["--trainer.max_rounds=3"])
        with only_trusted_imports():
            resolve(name, text).check_trainer()

    return read, [text.read_text(encoding="utf-8").encode() for text in list(files.shipped().values())[:3]]


def recipe_text() -> tuple[Reader, Sequence[bytes]]:
    """The same, up to where jsonargparse takes over."""
    from fedhq_lightning.launch.resolve import as_written
    from fedhq_lightning.recipe import files
    from fedhq_lightning.recipe.edit import with_value

    def read(content: bytes) -> None:
        _, text = files.find(str(fresh("a.yaml", content)))
        as_written(text, ["--trainer.max_rounds=3", "--model.lr=0.5"])
        with_value(text, ("trainer", "max_rounds"), 7)

    return read, [text.read_text(encoding="utf-8").encode() for text in files.shipped().values()]


def trace() -> tuple[Reader, Sequence[bytes]]:
    header = (
        "client,device,uplink_mbit_per_second,downlink_mbit_per_second,available_from_seconds,available_until_seconds"
    )
    rows = [
        "0,phone-snapdragon-855,2.5,20,0,28800",
        "0,,,,64800,86400",
        "1,raspberry-pi-4,,,,",
        "2,raspberry-pi-4,1,1,5,6",
    ]
    return lambda content: Fleet.resolve(fresh("a.csv", content), 0), ["\n".join([header, *rows, ""]).encode()]


def yaml_trace() -> tuple[Reader, Sequence[bytes]]:
    clients = [
        {"client": 0, "device": "phone-snapdragon-855", "uplink_mbit_per_second": 2.5, "available_from_seconds": 0,
         "available_until_seconds": 60.5},
        {"client": 1, "device": "raspberry-pi-4"},
    ]  # fmt: skip
    mixes = [
        {"profiles": {"phone-snapdragon-855": 2, "raspberry-pi-4": 1}},
        {"clients": clients, "period_seconds": 86400},
    ]
    samples = [yaml.safe_dump(mix).encode() for mix in mixes]
    return lambda content: Fleet.resolve(fresh("a.yaml", content), 0), samples


def device() -> tuple[Reader, Sequence[bytes]]:
    sample = shipped_file("raspberry-pi-4").read_text(encoding="utf-8").encode()
    return lambda content: load_profile(fresh("a.yaml", content)), [sample]


def idx() -> tuple[Reader, Sequence[bytes]]:
    images = struct.pack(">4I", IMAGE_MAGIC, 3, 4, 5) + bytes(range(60))

    def read(content: bytes) -> None:
        magic = LABEL_MAGIC if content[3:4] == b"\x01" else IMAGE_MAGIC
        read_idx(fresh("a.gz" if content[:2] == b"\x1f\x8b" else "a", content), magic)

    labels = struct.pack(">2I", LABEL_MAGIC, 9) + bytes(9)
    return read, [images, labels, gzip.compress(images), gzip.compress(bytes(images[:16]) + bytes(60))]


def wandb_bytes(records: Sequence[bytes]) -> bytes:
    """A `.wandb` file of short records, with right checksums."""
    content = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    for record in records:
        content += struct.pack("<IHB", zlib.crc32(record, zlib.crc32(b"\x01")), len(record), 1) + record
    return content


def wandb_records() -> list[bytes]:
    from wandb.proto import wandb_internal_pb2

    make: Any = vars(wandb_internal_pb2)["Record"]
    run, config, row = make(), make(), make()
    run.run.run_id = "abc"
    for key, value in (("recipe", {"model": {"lr": 0.1}, "trainer": {"monitor": "val_accuracy"}}), ("monitor", "x")):
        item = config.config.update.add()
        item.nested_key.extend([key])
        item.value_json = json.dumps(value)
    boundary = {"trial": 0, "slack": 0.5, "share": 0.1, "judged": 0, "objective": 0.25}
    logged = {"round": 1, "seconds/virtual": 2.5, "metric_fp": 0.5, "quantized/val": "NaN"}
    logged |= {f"allocation/{name}": value for name, value in boundary.items()}
    for key, value in logged.items():
        item = row.history.item.add()
        item.nested_key.extend(key.split("."))
        item.value_json = json.dumps(value)
    return [each.SerializeToString() for each in (run, config, row)]


def wandb_file() -> tuple[Reader, Sequence[bytes]]:
    from fedhq_lightning.run.offline_wandb import is_complete, mend, read_offline

    def read(content: bytes) -> None:
        path = fresh("run.wandb", content)
        is_complete(path)
        mend(path)
        learned_by(read_offline("a run", [path]).rows, "a run")

    return read, [wandb_bytes(wandb_records())]


def wandb_record() -> tuple[Reader, Sequence[bytes]]:
    """Damage that is not found by a checksum."""
    records = wandb_records()
    read, _ = wandb_file()

    def read_one(content: bytes) -> None:
        if content not in records:
            read(wandb_bytes([*records, content]))

    return read_one, records


def records() -> tuple[Reader, Sequence[bytes]]:
    """`rounds.jsonl`, and whoever reads it."""
    run_dir = write_run(Path("run"), allotted_rounds(num_rounds=3, num_clients=4, cohort=2))
    sample = (run_dir / "rounds.jsonl").read_bytes()

    def read(content: bytes) -> None:
        fresh("run/rounds.jsonl", content)
        run = Run(run_dir)
        _ = run.rounds, run.clients, run.columns(), run.direction, run.final
        learned_by(run.logged().rows, "a run")

    return read, [sample]


def reference() -> tuple[Reader, Sequence[bytes]]:
    run_dir = write_run(Path("run"), allotted_rounds(num_rounds=3, num_clients=4, cohort=2))
    sample = (run_dir / "rounds.jsonl").read_bytes()
    return lambda content: read_fits(fresh("rounds.jsonl", content)), [sample]


def summary() -> tuple[Reader, Sequence[bytes]]:
    from fedhq_lightning.report.formats import summary_rows, tier_rows

    per_class = {"classes": ["a", "b"], "examples": [3, 4], "fp": [0.5, 0.6], "quantized": [0.4, None]}
    inference = {"threads": 1, "batch_sizes": {"1": {"fp32_ms": 1.0, "int8_ms": 0.5, "speedup": 2.0}}}
    changes = {"per_class": per_class, "inference": inference, "wall_phases": {"deploy": 1.0}, "native_kernels": "avx2"}
    run_dir = write_run(Path("run"), allotted_rounds(num_rounds=3, num_clients=4, cohort=2), **changes)
    sample = (run_dir / "summary.json").read_bytes()

    def read(content: bytes) -> None:
        fresh("run/summary.json", content)
        run = Run(run_dir)
        summary_rows(run.summary)
        tier_rows(run.tiers)
        _ = run.clients, run.final, run.direction, run.metric_name, run.recipe_name

    return read, [sample]


def allocation() -> tuple[Reader, Sequence[bytes]]:
    run_dir = write_allocation(write_run(Path("run"), allotted_rounds(num_rounds=3, num_clients=4, cohort=2)), 3, 4)
    sample = (run_dir / "allocation.json").read_bytes()

    def read(content: bytes) -> None:
        from fedhq_lightning.run.allocation import read_allocation

        fresh("run/allocation.json", content)
        found = read_allocation(run_dir)
        assert found is not None
        found.telling_boundaries()
        found.client_rows()

    return read, [sample]


def cell() -> tuple[Reader, Sequence[bytes]]:
    from fedhq_lightning.experiments.cells import cell_of_run, read_cell, write_cell
    from fedhq_lightning.experiments.outcomes import outcomes, rows_of

    run = Run(write_run(Path("run"), allotted_rounds(num_rounds=4, num_clients=4, cohort=2)))
    write_cell(cell_of_run(run, "hybrid", 3, "print", {}, larger_is_better=True), Path("cell.json"))

    def read(content: bytes) -> None:
        found = read_cell(fresh("cell.json", content))
        rows_of(outcomes([found]), found.allocator)
        if any(found.clients):
            read_fits(Path("cell.json"))

    return read, [Path("cell.json").read_bytes()]


def journal() -> tuple[Reader, Sequence[bytes]]:
    import optuna

    from fedhq_lightning.experiments import study_storage
    from fedhq_lightning.experiments.objectives import Objective
    from fedhq_lightning.experiments.search_space import make_space
    from fedhq_lightning.experiments.study_check import check_trials
    from fedhq_lightning.experiments.study_results import front_table
    from fedhq_lightning.experiments.study_storage import StudyPlace, join, told

    search = {"model.lr": [0.1, 0.2], "model.momentum": {"low": 0.1, "high": 0.9}}
    content = {"model": {"class_path": "a.B", "init_args": {"lr": 0.1, "momentum": 0.5}}, "trainer": {}}
    space, objectives = make_space(content, search), (Objective("metric_fp", "max"),)
    design = {"recipe": {"name": "mine", **content}, "search": search, "seed": 0}
    place = StudyPlace("study.log", Path.cwd())
    study, _ = join(place, design, objectives)
    for value in (0.5, 0.75):
        trial = study.ask(space.distributions())
        trial.set_user_attr("run_dir", "runs/a")
        trial.set_user_attr("round 1", {"metric_fp": value})
        study.tell(trial, value)
    trial = study.ask(space.distributions())
    trial.set_user_attr("reason", "why")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def read(content: bytes) -> None:
        fresh("study.log", content)
        for path in Path().glob("study.log.*"):  # locks
            path.unlink()
        waited, study_storage._SECONDS_TO_WAIT = study_storage._SECONDS_TO_WAIT, 0
        try:
            study, _ = join(place, design, objectives)
        finally:
            study_storage._SECONDS_TO_WAIT = waited
        with told(place.storage):
            trials = study.get_trials(deepcopy=False)
            check_trials(trials, space, len(objectives))
        front_table(space, objectives, trials)

    return read, [Path("study.log").read_bytes()]


def packed() -> tuple[Reader, Sequence[bytes]]:
    """A packed model: its safetensors as a whole, and numbers that fit nothing."""
    import torch
    from torch import nn

    from fedhq_lightning.deploy import load_packed, save_packed
    from fedhq_lightning.quantize import QuantScheme, convert

    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    save_packed(convert(module, QuantScheme("w4a8")), Path("model.safetensors"))

    def read(content: bytes) -> None:
        load_packed(fresh("model.safetensors", content), module)(torch.zeros(1, 5))

    return read, [Path("model.safetensors").read_bytes()]


KINDS: dict[str, Kind] = {
    each.__name__: each
    for each in (
        *(recipe, recipe_text, trace, yaml_trace, device, idx, wandb_file, wandb_record),
        *(records, reference, summary, allocation, cell, journal, packed),
    )
}
FEWER = {"recipe": 6, "journal": 3}
"""Kinds of which one input takes many times as long as of the others."""


@pytest.mark.parametrize("kind", KINDS)
def test_mutations(kind: str, tmp_path: Path) -> None:
    read, samples = KINDS[kind]()
    count = 300 // FEWER.get(kind, 1)
    tally = attacked(read, samples, range(count), most_megabytes=MOST_MEGABYTES)
    assert tally["refused"] > count / 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutations(kind: str, tmp_path: Path) -> None:
    read, samples = KINDS[kind]()
    count = int(os.environ.get("FEDHQ_FUZZ", 60_000)) // FEWER.get(kind, 1)
    print(kind, dict(attacked(read, samples, range(10**6, 10**6 + count), most_megabytes=MOST_MEGABYTES)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=6,
)
"""Whatever JSON and YAML can say."""
FEW = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refused_or_read(read: Reader, content: bytes) -> None:
    with suppress(ConfigurationError):
        read(content)


def replaced(value: Any, place: int, by: Any) -> Any:
    """A copy with the value at a place, counted through all that is inside, put in the place of another."""
    count = -1

    def copy(node: Any) -> Any:
        nonlocal count
        count += 1
        if count == place:
            return by
        if isinstance(node, dict):
            return {key: copy(each) for key, each in node.items()}
        return [copy(each) for each in node] if isinstance(node, list) else node

    return copy(value)


@pytest.mark.parametrize("kind", ["recipe_text", "yaml_trace", "device", "recipe"])
@FEW
@given(place=st.integers(0, 120), value=VALUES)
def test_any_value_in_any_place_of_yaml(kind: str, tmp_path: Path, place: int, value: Any) -> None:
    read, samples = KINDS[kind]()
    content = replaced(yaml.safe_load(samples[place % len(samples)]), place // len(samples), value)
    refused_or_read(read, yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("kind", ["records", "reference", "summary", "allocation", "cell"])
@FEW
@given(place=st.integers(0, 200), value=VALUES)
def test_any_value_in_any_place_of_json(kind: str, tmp_path: Path, place: int, value: Any) -> None:
    read, samples = KINDS[kind]()
    *before, line = samples[0].decode().splitlines() if kind in ("records", "reference") else [samples[0].decode()]
    refused_or_read(read, "\n".join([*before, json.dumps(replaced(json.loads(line), place, value)), ""]).encode())
