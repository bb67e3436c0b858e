"""Private runs on two processes are bitwise those on one."""

import os
import runpy
import sys
from pathlib import Path

import pytest

from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory

from ...programs import Program
from ...small_federation import same_bits

SCRIPT = """
import sys
from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.federated.privacy import CentralPrivacy, LocalPrivacy
from tests.small_federation import SmallData, SmallModule, trainer

kind, devices, root = sys.argv[1:]
privacy = {"central": CentralPrivacy, "local": LocalPrivacy}[kind](1.0, 0.5, 1e-3)
there = trainer(
    scheme="w4a8", uplink="weights", privacy=privacy, clients_per_round=3, callbacks=FixedAllocator(0.5),
    devices=int(devices), default_root_dir=root, final_evaluation=False,
)
there.writes_model = False
there.fit(SmallModule(), SmallData())
"""
KINDS = ("central", "local")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    root = tmp_path_factory.mktemp("processes")
    script = root / "script.py"
    script.write_text(SCRIPT)
    places = {(kind, count): root / kind / str(count) for kind in KINDS for count in (1, 2)}
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    for kind in KINDS:
        two = Program(str(script), kind, "2", str(places[kind, 2]), env=environment)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(script), kind, "1", str(places[kind, 1])])
            runpy.run_path(str(script))
        printed = two.communicate(timeout=240)
        assert two.returncode == 0, printed
    return {key: next(place.glob("*/*/")) for key, place in places.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_are_bitwise_alike(runs: dict[tuple[str, int], Path], kind: str) -> None:
    states = [load_checkpoint(RunDirectory.of_checkpoint(runs[kind, count])[1])["state"] for count in (1, 2)]
    assert same_bits(states[0]["global_state"], states[1]["global_state"])
    assert states[0]["private_steps"] == states[1]["private_steps"]
    one, two = (RunDirectory(runs[kind, count]).read_rounds() for count in (1, 2))
    assert [record.epsilon for record in one] == [record.epsilon for record in two]
    assert one[-1].epsilon
