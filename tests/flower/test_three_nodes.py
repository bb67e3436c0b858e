"""A SuperLink and three SuperNodes as processes on the loopback, with TLS: the simulator's bits, and a killed node."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedhq_lightning.cli.main import main
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.types import StateDict

from ..small_federation import same_bits
from ..small_recipe import changed
from .nodes_here import RECIPE

pytest.importorskip("flwr")
from .federation import Federation, wait_for

pytestmark = pytest.mark.slow
PLAIN = {"model.class_path": "fedhq_lightning.models.MLP", "model.init_args": {"image_size": 8, "hidden_sizes": [16]}}
"""Without batch statistics each client is asked once a round."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    started = Federation(tmp_path_factory.mktemp("federation"))
    try:
        for place in range(3):
            started.start_node(place)
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "three.yaml"
    path.write_text(yaml.safe_dump(changed(RECIPE | PLAIN)))
    return path


def write_app(recipe: Path, folder: Path) -> Path:
    assert main(["flower", str(recipe), str(folder / "app"), f"--trainer.default_root_dir={folder / 'runs'}"]) == 0
    return folder / "app"


def run_in(folder: Path) -> Path:
    (found,) = folder.glob("runs/three/*")
    return found


def last_model(run_dir: Path) -> StateDict:
    last = max(run_dir.glob("checkpoints/round-*.ckpt"))
    state: StateDict = load_checkpoint(last)["state"]["global_state"]
    return state


def rounds_in(folder: Path) -> list[RoundRecord]:
    return list(RunDirectory(run_in(folder)).stream_rounds())


@pytest.fixture(scope="module")
def here(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> StateDict:
    """The simulator's model."""
    folder = tmp_path_factory.mktemp("here")
    assert main(["run", str(recipe), f"--trainer.default_root_dir={folder / 'runs'}"]) == 0
    return last_model(run_in(folder))


def test_the_model_is_the_simulators_to_the_bit(
    federation: Federation, recipe: Path, here: StateDict, tmp_path: Path
) -> None:
    running = federation.run(write_app(recipe, tmp_path))
    wait_for("the run ends", lambda: running.poll() is not None, 900)
    check_is_whole(federation, tmp_path, here)
    assert main(["report", str(run_in(tmp_path))]) == 0


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    federation: Federation, recipe: Path, here: StateDict, tmp_path: Path
) -> None:
    app = write_app(recipe, tmp_path)
    stopped = federation.run(app)
    wait_for("round 1 is saved", lambda: any(tmp_path.glob("runs/three/*/checkpoints/round-*1.ckpt")), 900)
    federation.stop_run()
    wait_for("the run is stopped", lambda: stopped.poll() is not None, 120)
    assert len(rounds_in(tmp_path)) == 2, "it was over when it was stopped"
    resumed = federation.run(app, 'resume="last"')
    wait_for("the run ends", lambda: resumed.poll() is not None, 900)
    check_is_whole(federation, tmp_path, here)


def check_is_whole(federation: Federation, folder: Path, here: StateDict) -> None:
    """The one run in a folder has ended, all clients took part in all rounds, and its model is the simulator's."""
    assert (run_in(folder) / "summary.json").exists(), federation.log("run")
    assert [[each.status for each in record.clients] for record in rounds_in(folder)] == [[], ["ok"] * 3, ["ok"] * 3]
    assert same_bits(last_model(run_in(folder)), here)


def test_a_node_killed_in_mid_round_is_a_client_that_fails(
    federation: Federation, recipe: Path, tmp_path: Path
) -> None:
    before = federation.log("node-1").count("Receiving: train message")
    running = federation.run(write_app(recipe, tmp_path))
    begins = "Receiving: train message"
    wait_for("node 1 is asked", lambda: federation.log("node-1").count(begins) > before, 600)
    federation.kill("node-1")
    wait_for("the run ends", lambda: running.poll() is not None, 1800)
    _, first, second = rounds_in(tmp_path)
    assert [each.status for each in first.clients] == ["ok", "quarantined", "ok"], federation.log("run")
    assert first.clients[1].reason.startswith("its node failed: ")
    assert [each.status for each in second.clients] == ["ok", "quarantined", "ok"], federation.log("run")
    assert (run_in(tmp_path) / "summary.json").exists()
