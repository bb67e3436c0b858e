"""The folder `model/`: loaded with torch alone, told in its README, whole at every call."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedhq_lightning.deploy import ExportError, load_packed, packed_size
from fedhq_lightning.deploy.deployment import Deployment
from fedhq_lightning.deploy.model_folder import write_model_folder
from fedhq_lightning.quantize import QuantScheme, convert

from ..small_federation import NUM_CLASSES, NUM_FEATURES, SmallModule, same_bits

SCHEME = QuantScheme("w4a8")
TORCH_ALONE = """
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fedhq_lightning", "lightning", "torchao", "torchmetrics", "safetensors"):
            raise ImportError(f"{name} is not installed here")


sys.meta_path.insert(0, Refuse())
"""
"""Put before a script: an environment in which torch is, and we and ours are not."""


def write(folder: Path, module: L.LightningModule, **arguments: Any) -> Deployment:
    inputs = (torch.randn(5, NUM_FEATURES),)
    converted = convert(module, SCHEME)
    assert isinstance(converted, L.LightningModule)
    given = {"example_args": inputs, "scheme": SCHEME, "name": type(module).__name__} | arguments
    return write_model_folder(folder, converted, module.state_dict(), **given)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def with_torch_alone(script: str, folder: Path) -> str:
    """Output of a script that runs in `folder`, without this checkout on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", TORCH_ALONE + script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestLoader:
    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("deployed") / "model"
        write(folder, SmallModule())
        for file in ("weights.safetensors", "README.md"):
            (folder / file).unlink()  # the loader and the program are all that it takes
        return folder

    def test_is_eighteen_lines_that_import_torch_alone(self, folder: Path) -> None:
        text = (folder / "load_model.py").read_text()
        code = [line for line in text.splitlines() if line.strip() and not line.startswith('"""')]
        assert len(code) <= 18
        assert {line.split()[1].partition(".")[0] for line in code if line.startswith(("import", "from"))} == {
            "hashlib",
            "io",
            "pathlib",
            "torch",
            "warnings",
        }

    @pytest.mark.corner
    def test_as_a_script_it_shows_what_goes_in_and_comes_out(self, folder: Path) -> None:
        shown = with_torch_alone('import runpy\nrunpy.run_path("load_model.py", run_name="__main__")', folder)
        assert shown.splitlines() == [
            f"inputs ('torch.float32 (2, {NUM_FEATURES})',)",
            f"outputs torch.float32 (2, {NUM_CLASSES})",
        ]

    def test_as_a_module_it_gives_the_deployed_model_bit_for_bit(self, folder: Path, tmp_path: Path) -> None:
        inputs = torch.randn(7, NUM_FEATURES)
        torch.save(inputs, tmp_path / "inputs.pt")
        script = f"""
sys.path.insert(0, {str(folder)!r})
import torch
from load_model import model

inputs = torch.load("inputs.pt")
torch.save([model(inputs), model(inputs[:1])], "outputs.pt")
"""
        assert with_torch_alone(script, tmp_path) == ""
        expected = convert(SmallModule(), SCHEME)(inputs)
        many, one = torch.load(tmp_path / "outputs.pt")
        assert torch.equal(many, expected)
        assert torch.equal(one, expected[:1])

    def test_the_hook_really_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="fedhq_lightning is not installed here"):
            with_torch_alone("import fedhq_lightning", tmp_path)


class TestReadme:
    def test_says_what_the_model_is_and_how_to_run_it(self, tmp_path: Path) -> None:
        module = SmallModule()
        write(
            tmp_path / "model",
            module,
            fp_metrics={"val_loss": 0.5, "val_accuracy": 0.987654},
            quantized_metrics={"val_accuracy": 0.9},
            held_out="the test set of Birds",
        )
        text = (tmp_path / "model" / "README.md").read_text()
        assert text.startswith("# SmallModule, w4a8\n")
        assert "| `val_loss` | 0.5 | not measured |" in text
        assert "| `val_accuracy` | 0.987654 | 0.9 |" in text
        assert "Metrics are those on the test set of Birds." in text
        assert f"torch {torch.__version__.split('+')[0]}" in text
        assert f"float32 of shape (batch, {NUM_FEATURES})" in text
        for file in ("model.pt2", "weights.safetensors"):
            assert f"`{file}`, {(tmp_path / 'model' / file).stat().st_size:,} bytes" in text
        assert same_bits(load_file(tmp_path / "model" / "weights.safetensors"), module.state_dict())

    def test_its_code_runs(self, tmp_path: Path) -> None:
        write(tmp_path / "model", SmallModule())
        blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "model" / "README.md").read_text(), re.DOTALL)
        assert len(blocks) == 2
        script = f"import torch\nsys.path.insert(0, '.')\ninputs = torch.randn(3, {NUM_FEATURES})\n{blocks[0]}"
        shown = with_torch_alone(f"{script}\nprint(tuple(outputs.shape))", tmp_path / "model")
        assert shown == f"(3, {NUM_CLASSES})\n"

    @pytest.mark.parametrize("strict", [True, False])
    def test_its_weights_can_be_loaded_as_it_says(self, tmp_path: Path, strict: bool) -> None:
        """Also where a module keeps a frozen part out of its state."""
        module = SmallModule()
        module.strict_loading = strict
        weights = dict(module.state_dict())
        if not strict:
            del weights[next(iter(weights))]
        inputs, converted = (torch.randn(5, NUM_FEATURES),), convert(module, SCHEME)
        assert isinstance(converted, L.LightningModule)
        folder = tmp_path / "model"
        write_model_folder(folder, converted, weights, inputs, SCHEME, "SmallModule")
        blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        found = SmallModule()
        exec(blocks[1].replace("weights.safetensors", str(folder / "weights.safetensors")), {"module": found})
        assert same_bits({name: found.state_dict()[name] for name in weights}, weights)

    def test_metrics_of_the_written_program_stand_before_others(self, tmp_path: Path) -> None:
        seen: list[bool] = []

        def evaluate(program: nn.Module) -> dict[str, float]:
            seen.append(program(torch.zeros(2, NUM_FEATURES)).shape[0] == 2)
            return {"val_accuracy": 0.25}

        done = write(tmp_path / "model", SmallModule(), evaluate=evaluate, quantized_metrics={"val_accuracy": 0.75})
        assert (seen, done.metrics, done.export) == ([True], {"val_accuracy": 0.25}, "model.pt2")
        text = (tmp_path / "model" / "README.md").read_text()
        assert "| `val_accuracy` | not measured | 0.25 |" in text


@pytest.mark.corner
def test_a_killed_process_leaves_no_litter_for_the_next_and_no_readme_of_another_model(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    write(folder, SmallModule())
    (folder / "mine.txt").touch()
    killed = """
import os, sys
from tests.small_federation import SmallModule
from tests.deploy.test_model_folder import write
replace = os.replace
os.replace = lambda source, target: os._exit(9) if target.name == "model.pt2" else replace(source, target)
write(__import__("pathlib").Path(sys.argv[1]), SmallModule())
"""
    done = subprocess.run([sys.executable, "-c", killed, str(folder)], check=False)
    assert done.returncode == 9
    left = files(folder)
    assert {name for name in left if not name.startswith(".model.pt2.")} == {"weights.safetensors", "mine.txt"}
    assert len(left) == 3
    (folder / ".weights.safetensors.h4lf_way").touch()
    write(folder, SmallModule())
    assert files(folder) == {"model.pt2", "load_model.py", "weights.safetensors", "README.md", "mine.txt"}


class TestOtherKinds:
    def test_a_program_of_no_use_is_packed_and_its_files_go(self, tmp_path: Path) -> None:
        def evaluate(program: nn.Module) -> dict[str, float]:
            raise ExportError("it takes no texts")

        module, folder = SmallModule(), tmp_path / "model"
        write(folder, module)
        assert files(folder) == {"model.pt2", "load_model.py", "weights.safetensors", "README.md"}
        done = write(folder, module, evaluate=evaluate)
        assert files(folder) == {"model.safetensors", "weights.safetensors", "README.md"}
        assert (done.export, done.reason, done.model) == ("packed", "it takes no texts", None)
        assert "There is no `model.pt2`: it takes no texts." in (folder / "README.md").read_text()
        inputs = torch.randn(3, NUM_FEATURES)
        loaded = load_packed(folder / "model.safetensors", SmallModule())
        assert torch.equal(loaded(inputs), convert(module, SCHEME)(inputs))

    def test_float32(self, tmp_path: Path) -> None:
        module, folder = SmallModule(), tmp_path / "model"
        done = write_model_folder(
            folder, None, module.state_dict(), None, None, "SmallModule", fp_metrics={"val_loss": 1.5}
        )
        assert (done.export, done.packed_bytes) == ("float32", None)
        assert files(folder) == {"weights.safetensors", "README.md"}
        text = (folder / "README.md").read_text()
        assert text.startswith("# SmallModule, float32\n")
        assert "| `val_loss` | 1.5 |" in text
        assert "model.pt2" not in text

    def test_the_modules_own_example_stands_in(self, tmp_path: Path) -> None:
        module = SmallModule()
        module.example_input_array = torch.zeros(1, NUM_FEATURES)
        assert write(tmp_path / "one", module, example_args=None).export == "model.pt2"
        done = write(tmp_path / "none", SmallModule(), example_args=None)
        assert "no example_input_array" in done.reason


def test_packed_size_is_what_the_packed_file_holds(tmp_path: Path) -> None:
    class Two(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(100, 40), nn.BatchNorm1d(40), nn.Linear(40, 30), nn.Linear(30, 3))

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = self.net(inputs)
            return output

    module = Two().eval()

    def evaluate(program: nn.Module) -> dict[str, float]:
        raise ExportError("packed")

    done = write(tmp_path / "model", module, example_args=(torch.randn(2, 100),), evaluate=evaluate)
    size = sum(value.nbytes for value in load_file(tmp_path / "model" / "model.safetensors").values())
    assert done.packed_bytes == packed_size(convert(module, SCHEME)) == size
