"""One process, two processes, and a killed one: bitwise the same model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from fedhq_lightning.cli.main import main
from fedhq_lightning.run.directory import RunDirectory, load_checkpoint

from ..small_federation import same_bits

# Integers everywhere, though these layers are too small for them to pay, and every random number that a lane draws.
LANES = '{qat_kernel: int8, stochastic_rounding: true, layer_kernels: {ptq: {"*": int8}}}'
SMOKE = [
    *("digits-smoke", f"--trainer.lanes={LANES}"),
    *("--trainer.logger=false", "--trainer.max_rounds=4", "--trainer.enable_progress_bar=false"),
]

TELLS_OF_THE_GROUP = """
import atexit, sys, torch
from fedhq_lightning.cli.main import main
atexit.register(lambda: print("in a group at exit:", torch.distributed.is_initialized()))  # after what comes later
sys.exit(main())
"""


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start(*arguments: str, script: Path | None = None) -> subprocess.Popen[str]:
    program = ["-m", "fedhq_lightning.cli.main"] if script is None else [str(script)]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"MASTER_PORT": free_port(), "MASTER_ADDR": "127.0.0.1"},
        start_new_session=True,
    )


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
        killed = start("run", *SMOKE, f"--trainer.default_root_dir={roots['killed']}")
        try:
            while not any(file.read_text().count("\n") >= 3 for file in roots["killed"].glob("*/*/rounds.jsonl")):
                assert killed.poll() is None, killed.communicate()[0]
                time.sleep(0.002)
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
            killed.communicate()
        assert not list(roots["killed"].glob("*/*/summary.json")), "it was killed too late"
        run_here("resume", str(only_run(roots["killed"])))
        run_here("run", *SMOKE, f"--trainer.default_root_dir={roots['one']}")
        script = root / "script.py"
        script.write_text(TELLS_OF_THE_GROUP)
        arguments = [*SMOKE, "--trainer.devices=2", f"--trainer.default_root_dir={roots['two']}"]
        two = start("run", *arguments, script=script)
        output, _ = two.communicate(timeout=120)
        assert two.returncode == 0, output
        assert output.count("in a group at exit: False") == 2, "what is left of gloo may abort the process"
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
        summaries = [json.loads((runs[each] / "summary.json").read_text()) for each in ("one", name)]
        for key in ("metric_fp", "metric_quantized", "best_round", "mode_counts", "worst_client", "export"):
            assert summaries[0][key] == summaries[1][key]

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
