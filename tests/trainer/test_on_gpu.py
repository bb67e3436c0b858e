"""Runs on a GPU. No machine that this was written on had one: what a test says here is what is meant to hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedhq_lightning.cli.main import main
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory

from ..small_federation import same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
# Integers in every layer, though these are too small for them to pay.
LANES = '{qat_kernel: int8, layer_kernels: {ptq: {"*": int8}}}'
RUN = [
    *("run", "digits-smoke", f"--trainer.lanes={LANES}", "--trainer.accelerator=gpu", "--trainer.max_rounds=2"),
    *("--trainer.logger=false", "--trainer.enable_progress_bar=false"),
]
FIGURES_ALONE = ["--trainer.export=null", "--trainer.final_evaluation=false"]
# On a GPU that is none, for the processes of a run too.
PRELUDE = "from tests.fake_gpu.pretend import pretend\npretend()\n" if "tests.fake_gpu.pretend" in sys.modules else ""
SCRIPT = PRELUDE + "import sys\nfrom fedhq_lightning.cli.main import main\nsys.exit(main())\n"


def only_run(root: Path) -> Path:
    (run,) = root.glob("*/*/")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    assert main([*RUN, f"--trainer.default_root_dir={root}"]) == 0
    return only_run(root)


def test_two_processes_on_one_gpu_train_the_same_bits(run: Path, tmp_path: Path) -> None:
    script, root = tmp_path / "script.py", tmp_path / "two"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), *RUN, *FIGURES_ALONE, "--trainer.devices=[0,0]"]
    command.append(f"--trainer.default_root_dir={root}")
    two = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert two.returncode == 0, two.stderr
    other = only_run(root)
    states = [load_checkpoint(RunDirectory.of_checkpoint(each)[1])["state"] for each in (run, other)]
    assert same_bits(states[0]["global_state"], states[1]["global_state"])
    for mine, theirs in zip(*(RunDirectory(each).read_rounds() for each in (run, other)), strict=True):
        assert mine.metrics == theirs.metrics
        assert mine.mode_counts == theirs.mode_counts
        assert mine.quarantined == theirs.quarantined == 0


def test_the_summary_says_where_it_ran(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["device"] == torch.cuda.get_device_name()
    assert summary["native_kernels"] is None


def test_its_model_computes_on_a_cpu_what_it_was_said_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert {file["name"]: file["reason"] for file in summary["files"]} == {"model.pt2": None, "model.onnx": None}
    assert main(["eval", str(run)]) == 0
    assert f"{summary['metric_quantized']:.4f}" in capsys.readouterr().out


def test_it_goes_on_where_it_was_on_a_gpu_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(run), "--trainer.max_rounds=3", "--trainer.accelerator=cpu"]) == 2
    assert "device was 'cuda', is now 'cpu'" in capsys.readouterr().err
    assert main(["resume", str(run), "--trainer.max_rounds=3", *FIGURES_ALONE]) == 0
    assert json.loads((run / "summary.json").read_text())["rounds"] == 3
