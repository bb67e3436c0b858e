"""`fedhq export`: a client's model, everybody's in other files, and what it refuses."""

import sys
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

from fedhq_lightning.cli.main import main
from fedhq_lightning.run.client_store import PERSONAL
from fedhq_lightning.run.directory import RunDirectory

from ..small_recipe import write_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose clients fine-tuned, in a folder with its recipe."""
    root = tmp_path_factory.mktemp("exported")
    changes = {
        "trainer.max_rounds": 1,
        "trainer.fine_tuning": {"local_steps": 2},
        "trainer.evaluate_clients": {"clients": 2},
        "trainer.export": [],
        "data.init_args.client_holdout": 0.2,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "path", list(sys.path))
        write_recipe(root / "mine.yaml", changes)
        assert main(["run", "mine.yaml", "--name=tuned"]) == 0
    (folder,) = root.glob("runs/mine/*")
    return folder


@pytest.fixture(autouse=True)
def _beside_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(run.parent.parent.parent)


def tuners(run: Path) -> list[int]:
    return RunDirectory(run).fine_tuned.holders(1)


def test_a_clients_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = tuners(run)[0]
    assert main(["export", "tuned", "--client", str(client)]) == 0
    assert capsys.readouterr().out == f"model: {run.relative_to(Path.cwd())}/clients/{client}\n"
    folder, own = run / "clients" / str(client), RunDirectory(run).fine_tuned.load(client, 9)[PERSONAL]
    written, everybodys = (load_file(each / "weights.safetensors") for each in (folder, run / "model"))
    for name, value in written.items():
        assert torch.equal(value, own[name])
    assert not all(torch.equal(value, everybodys[name]) for name, value in written.items())
    assert (folder / "model.pt2").exists()
    assert f"what client {client} holds back" in (folder / "README.md").read_text()


def test_everybodys_in_other_files(run: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    output = tmp_path / "new" / "out"
    for _ in range(2):  # an earlier export is replaced
        assert main(["export", str(run), "--format", "onnx", "--output", str(output)]) == 0
    onnx.checker.check_model(onnx.load(output / "model.onnx"))
    assert (output / "weights.safetensors").read_bytes() == before[run / "model" / "weights.safetensors"]
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tuned", "--client", "17"), "export tuned: client '17': the data know of no such client, of 4"),
        (("tuned", "--client", "UNTUNED"), "it has not fine-tuned the model; those that have are "),
        (("tuned", "--format", "onyx"), "'onyx': must be one of onnx, executorch, aoti; did you mean 'onnx'?"),
        (("tuned", "--trainer.seed=3"), "the model is that of the run's own recipe: trainer.seed was 0, is now 3"),
        (("tuned", "--output", "FULL"), "holds something else than a model; give a new folder"),
        (("nowhere",), "export nowhere: "),
    ],
    ids=["no such client", "none of its own", "format", "other values", "folder", "no run"],
)
def test_what_is_refused(
    run: Path, arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("mine")
    untuned = next(str(each) for each in range(4) if each not in tuners(run))
    given = [each.replace("UNTUNED", untuned).replace("FULL", str(tmp_path)) for each in arguments]
    assert main(["export", *given]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message in said.err
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_run_from_python_is_exported_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ..trainer.runs import fit

    done, _ = fit(max_rounds=1, default_root_dir=tmp_path)
    assert main(["export", str(done.run_dir)]) == 2
    assert "this run was started from Python; in a script make its trainer" in capsys.readouterr().err
    assert (done.export_model() / "weights.safetensors").exists()
