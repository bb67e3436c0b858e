"""The step benchmark from end to end, on its smallest model."""

import random
import re
from pathlib import Path

import pytest
import step_time
import torch
from step_cases import LANES, MODELS, build_step, lanes_for
from step_memory import cpu_peak, peak_after

CPU = torch.device("cpu")


def test_peak_after_counts_what_was_there_before() -> None:
    # Time, bytes: 100 before the start, of which 40 go after it; at most 100 + 30.
    events = [(1, 70), (2, 30), (5, 30), (6, -40), (7, 20), (8, -80)]
    random.Random(0).shuffle(events)
    assert peak_after(3, events) == 130
    assert peak_after(6, events) == 130
    assert peak_after(7, events) == 110
    assert peak_after(9, events) == 30


def test_peak_of_an_ordinary_step() -> None:
    """Weights, gradients, momentum and the batch, and not much beside them: the layers are small."""
    float_bytes = sum(4 * parameter.numel() for parameter in MODELS["mlp-128"].build().parameters())
    batch_bytes = 4 * 32 * 784
    least = 3 * float_bytes + batch_bytes
    assert least <= cpu_peak("mlp-128", "fp32") <= 1.1 * least


# torch.compile imports a module of torch that torch itself deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["mlp-128", "lenet5"])
def test_lanes_start_from_the_same_weights_and_train_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]
    starts, modules = [], []

    class Recorded(torch.optim.SGD):
        def __init__(self, parameters: object, **settings: object) -> None:
            modules.append(list(parameters))  # type: ignore[call-overload]  # what SGD takes
            starts.append([parameter.detach().clone().contiguous() for parameter in modules[-1]])
            super().__init__(modules[-1], **settings)  # type: ignore[arg-type]  # what SGD takes

    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    for lane in lanes_for(model):
        state = torch.get_rng_state()
        step = build_step(model, LANES[lane], CPU)
        assert torch.equal(torch.get_rng_state(), state)
        step()
        assert all(torch.equal(mine, first) for mine, first in zip(starts[-1], starts[0], strict=True)), lane
        assert not any(torch.equal(now, then) for now, then in zip(modules[-1], starts[-1], strict=True)), lane
        assert all(parameter.grad is None for parameter in modules[-1]), lane


def test_torchao_is_left_out_where_it_has_no_kernels() -> None:
    assert "torchao-qat" not in lanes_for(MODELS["resnet20-16"])
    assert "fp32-channels-last" not in lanes_for(MODELS["vit-384"])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["step_time.py", *arguments])
    step_time.main()


def test_one_command_prints_and_writes_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "step-times.md"
    monkeypatch.setattr(step_time, "BLOCK_SECONDS", 0.0)
    chosen = ["--models", "mlp-128", "--lanes", "fp32", "ptq", "--rounds", "2", "--steps", "2", "--no-memory"]
    run(monkeypatch, *chosen, "--output", str(page))
    printed, text = capsys.readouterr().out, page.read_text()
    assert text.count("<!-- begin step_time cpu, ") == 1
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + 2 + 1
    assert all(line in printed for line in rows)
    run(monkeypatch, *chosen, "--output", str(page), "--print-only")
    assert page.read_text() == text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--accelerator", "cuda")
    assert capsys.readouterr() == ("", "--accelerator cuda: torch sees no CUDA device here\n")


def test_a_lane_that_fails_is_reported_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(module: object) -> None:
        raise RuntimeError("no kernel for this\nand much more")

    monkeypatch.setitem(LANES, "ptq", type(LANES["ptq"])("ptq", broken))
    run(monkeypatch, "--models", "mlp-128", "--lanes", "fp32", "ptq", "--rounds", "1", "--no-memory", "--print-only")
    printed = capsys.readouterr().out
    assert "ptq did not run: RuntimeError: no kernel for this\n" in printed
    assert re.search(r"\| fp32 \| \d+\.\d", printed)
    assert "0 of 1 met." in printed
