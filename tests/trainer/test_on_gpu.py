"""Runs on a GPU; where there is none, on one that claims to be (`tests/fake_gpu/`)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator, HybridAllocator
from fedhq_lightning.cli.main import main
from fedhq_lightning.federated import algorithms, robust
from fedhq_lightning.federated.fine_tuning import FineTuning
from fedhq_lightning.federated.privacy import CentralPrivacy, LocalPrivacy
from fedhq_lightning.federated.secure.secure_aggregation import SecureAggregation
from fedhq_lightning.quantize import LaneOptions
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory

from ..small_federation import NUM_CLASSES, SmallData, SmallModule, examples, same_bits, trainer

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


class _Images(SmallModule):
    """Convolutions, norms of both kinds, pooling and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(
            *(nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Dropout(0.1), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES)),
        )


class _HoldsBack(SmallData):
    def client_val_dataloader(self, client_id: Any) -> Any:
        return DataLoader(examples(20, 50 + client_id), 8)


INT8 = {"layer_kernels": {mode: {"*": "int8"} for mode in ("ptq", "qat")}}
OPTIONS: dict[str, dict[str, Any]] = {
    "integers": {"lanes": LaneOptions(**INT8)},
    "bf16 backward": {"lanes": LaneOptions(**INT8, qat_backward="bf16")},
    "fake": {"lanes": LaneOptions(qat_kernel="fake")},
    "stochastic and bias": {"lanes": LaneOptions(**INT8, stochastic_rounding=True, bias_correction=True)},
    "static ranges": {"lanes": LaneOptions(**INT8), "scheme": "w4a8s"},
    "weights only": {"scheme": "w4"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "clipped": {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2, "ema_decay": 0.9},
    "averaged": {"average_from": 1, "round_lr": "cosine", "retake_batch_statistics": False},
    "uplink": {"uplink": "weights", "downlink": "scheme"},
    "error feedback": {"error_feedback": True, "uplink_bits": 3, "uplink_rounding": "stochastic"},
    **{
        name: {"aggregator": getattr(algorithms, name)()}
        for name in ("FedProx", "Scaffold", "FedDyn", "FedNova", "FedAdam", "FedAvgM")
    },
    "FedBuff": {"aggregator": algorithms.FedBuff(2), "clients_per_round": 2, "fleet": "mixed"},
    "Krum": {"robust_rule": robust.Krum(0)},
    "GeometricMedian": {"robust_rule": robust.GeometricMedian()},
    "personal": {"personal_layers": ["net.12*"]},
    "ditto": {"ditto": 0.1},
    "held back": {"fine_tuning": FineTuning(), "evaluate_clients": True},
    "LocalPrivacy": {"privacy": LocalPrivacy(1.0, 1.0, 1e-3), "module": SmallModule},
    "CentralPrivacy": {"privacy": CentralPrivacy(1.0, 1.0, 1e-3), "clients_per_round": 0.9, "module": SmallModule},
    "masked": {"secure_aggregation": SecureAggregation(), "max_norm_ratio": None, "module": SmallModule},
    "hybrid": {"callbacks": [HybridAllocator(divergence="updates", sensitivity="loss")], "fleet": "mixed"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_no_part_of_a_run_takes_tensors_of_both_devices(name: str, tmp_path: Path) -> None:
    """A client whose code raises is quarantined, so none may be."""
    options = dict(OPTIONS[name])
    module = options.pop("module", _Images)()
    modes = FixedAllocator({0: "ptq", 1: "qat", 2: "fp", 3: "qat"})
    settings: dict[str, Any] = {"scheme": "w4a8", "callbacks": [modes], "default_root_dir": tmp_path, **options}
    run = trainer(accelerator="gpu", **settings)
    run.writes_model = False
    run.fit(module, _HoldsBack() if name == "held back" else SmallData())
    assert run.fabric.device.type == "cuda"
    assert run.summary["quarantined"] == 0
    assert run.summary["mode_counts"]["fp"] < sum(run.summary["mode_counts"].values())
