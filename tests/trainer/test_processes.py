"""One process, two processes, and a killed one: bitwise the same model."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from fedhq_lightning.cli.main import main
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory

from ..programs import Program
from ..small_federation import same_bits

# Integers everywhere, though these layers are too small for them to pay, and every random number that a lane draws.
LANES = '{qat_kernel: int8, stochastic_rounding: true, layer_kernels: {ptq: {"*": int8}}}'
SMOKE = [
    *("digits-smoke", f"--trainer.lanes={LANES}", "--data.client_holdout=0.2", "--trainer.evaluate_clients.clients=5"),
    *("--trainer.logger=false", "--trainer.max_rounds=4", "--trainer.enable_progress_bar=false"),
]

# Each process writes a file of its own beside the script.
TELLS_OF_THE_GROUP = """
import atexit, os, sys, torch
from pathlib import Path
from fedhq_lightning.cli.main import main

def tell():
    rank = os.environ["LOCAL_RANK"]
    Path(__file__).with_name(f"in a group at exit, {rank}").write_text(str(torch.distributed.is_initialized()))

atexit.register(tell)  # called after what is registered later
sys.exit(main())
"""
KILLED = """
import os, signal, sys
from fedhq_lightning.cli.main import main
from fedhq_lightning.run.directory import RunDirectory

def save_or_die(self, round_number, *others):
    if round_number == 2:  # its record is on the disk
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, round_number, *others)

save, RunDirectory.save_checkpoint = RunDirectory.save_checkpoint, save_or_die
sys.exit(main())
"""


def start(*arguments: str, script: Path | None = None) -> Program:
    """The command in a process of its own, or in two: Lightning finds the port just before it needs it."""
    program = ["-m", "fedhq_lightning.cli.main"] if script is None else [str(script)]
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    return Program(*program, *arguments, env=environment, has_real_second=script is not None)


def run_here(*arguments: str) -> None:
    """The same command in this process, which has everything imported."""
    with warnings.catch_warnings():
        assert main(arguments) == 0


def only_run(root: Path) -> Path:
    (run,) = root.glob("*/*/")
    return run


class TestProcesses:
    """The smoke recipe on one process, on two, and killed: bitwise the same model."""

    @pytest.fixture(scope="class")
    @staticmethod
    def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        root = tmp_path_factory.mktemp("processes")
        roots = {name: root / name for name in ("one", "two", "killed")}
        script, killed_script = root / "script.py", root / "killed.py"
        script.write_text(TELLS_OF_THE_GROUP)
        killed_script.write_text(KILLED)
        arguments = [*SMOKE, "--trainer.devices=2", f"--trainer.default_root_dir={roots['two']}"]
        two = start("run", *arguments, script=script)
        killed = start("run", *SMOKE, f"--trainer.default_root_dir={roots['killed']}", script=killed_script)
        run_here("run", *SMOKE, f"--trainer.default_root_dir={roots['one']}")
        printed = killed.communicate(timeout=240)
        assert killed.returncode == -signal.SIGKILL, printed
        directory = RunDirectory(only_run(roots["killed"]))
        assert [record.round for record in directory.read_rounds()] == [0, 1, 2]
        assert [path.name for path in directory.saved_checkpoints()] == ["round-000000.ckpt", "round-000001.ckpt"]
        run_here("resume", str(directory.path))
        printed = two.communicate(timeout=240)
        assert two.returncode == 0, printed
        left = [(root / f"in a group at exit, {rank}").read_text() for rank in (0, 1)]
        assert left == ["False", "False"], "what is left of gloo may abort the process"
        return {name: only_run(each) for name, each in roots.items()}

    @pytest.mark.parametrize("name", ["two", "killed"])
    def test_are_bitwise_alike(self, runs: dict[str, Path], name: str) -> None:
        weights = [(runs[each] / "model" / "weights.safetensors").read_bytes() for each in ("one", name)]
        assert weights[0] == weights[1]
        states = [load_checkpoint(RunDirectory.of_checkpoint(runs[each])[1])["state"] for each in ("one", name)]
        assert same_bits(states[0]["global_state"], states[1]["global_state"])

    @pytest.mark.parametrize("name", ["two", "killed"])
    def test_report_the_same(self, runs: dict[str, Path], name: str) -> None:
        one, other = RunDirectory(runs["one"]).read_rounds(), RunDirectory(runs[name]).read_rounds()
        assert [record.round for record in other] == [0, 1, 2, 3, 4]
        for mine, theirs in zip(one, other, strict=True):
            assert mine.metrics == theirs.metrics
            assert [client.client_id for client in mine.clients] == [client.client_id for client in theirs.clients]
            assert [client.metrics for client in mine.clients] == [client.metrics for client in theirs.clients]
            assert mine.total_virtual_seconds == theirs.total_virtual_seconds
            assert mine.uplink_bytes == theirs.uplink_bytes
            assert mine.evaluation == theirs.evaluation
            assert mine.evaluation is None or len(mine.evaluation.clients) == 5
        summaries = [json.loads((runs[each] / "summary.json").read_text()) for each in ("one", name)]
        for key in (
            "metric_fp",
            "metric_quantized",
            "best_round",
            "mode_counts",
            "worst_client",
            "on_clients",
            "export",
        ):
            assert summaries[0][key] == summaries[1][key]

    @pytest.mark.corner
    def test_the_deployed_model_needs_torch_alone(self, runs: dict[str, Path], tmp_path: Path) -> None:
        """A fresh interpreter without our packages computes `metric_quantized` from `model.pt2`."""
        from fedhq_lightning.data import Digits

        data = Digits()
        data.prepare_data()
        data.setup("fit")
        batches = [list(batch) for batch in data.val_dataloader()]
        torch.save(batches, tmp_path / "batches.pt")
        code = f"""
import sys, torch
model = torch.export.load({str(runs["one"] / "model" / "model.pt2")!r}).module()
right = total = 0
for images, labels in torch.load({str(tmp_path / "batches.pt")!r}):
    right += (model(images).argmax(1) == labels).sum().item()
    total += len(labels)
    assert torch.equal(model(images[:1]), model(images)[:1])
assert not [name for name in sys.modules if name.split(".")[0] in ("fedhq_lightning", "torchao", "lightning")]
print(right / total)
"""
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        summary = json.loads((runs["one"] / "summary.json").read_text())
        assert summary["metric_name"] == "val_accuracy"
        assert float(out) == pytest.approx(summary["metric_quantized"], abs=1e-7)
