"""Latency and size of a deployed model beside its float32 module."""

import time
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.deploy import speed
from fedhq_lightning.deploy.model_folder import write_model_folder
from fedhq_lightning.deploy.speed import measure_inference
from fedhq_lightning.quantize import QuantScheme, convert

from ..no_report import leave_out_report
from ..small_federation import NUM_FEATURES, SmallData, SmallModule, same_bits
from ..trainer.runs import fit, last_state


class Slow(SmallModule):
    """A module whose float32 forward takes a known time, and draws random numbers."""

    seconds = 0.01
    forwards = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.forwards += 1
            time.sleep(self.seconds)
            torch.rand(1)
        output: Tensor = self.net(inputs)
        return output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    converted = convert(SmallModule(), QuantScheme("w4a8"))
    assert isinstance(converted, L.LightningModule)
    inputs = (torch.randn(6, NUM_FEATURES),)
    scheme = QuantScheme("w4a8")
    write_model_folder(tmp_path / "model", converted, SmallModule().state_dict(), inputs, scheme, "SmallModule")
    return tmp_path / "model"


def measure(module: nn.Module, folder: Path, batch: int = 6) -> dict:  # type: ignore[type-arg]  # as JSON holds it
    args = (torch.ones(batch, NUM_FEATURES),)
    program = torch.export.load(folder / "model.pt2").module()
    return measure_inference({"fp32 in torch": module}, {"model.pt2": program}, args)


def test_times_are_of_what_is_called(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_MOST_SECONDS", 100)  # a busy machine measures as often
    random_state, module = torch.get_rng_state(), Slow().train()
    found = measure(module, folder)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(found["batch_sizes"]) == ["1", "6"]
    for times in found["batch_sizes"].values():
        assert times["fp32_ms"] >= 10
        low, high = times["fp32_ms_quartiles"]
        assert 10 <= low <= times["fp32_ms"] <= high
        assert times["int8_ms"] < times["fp32_ms"]
        assert times["speedup"] == times["fp32_ms"] / times["int8_ms"] > 1
        assert times["repetitions"] == 40
        assert (times["fp32"], times["int8"]) == ("fp32 in torch", "model.pt2")
        assert times["forms"]["model.pt2"] == {"ms": times["int8_ms"], "ms_quartiles": times["int8_ms_quartiles"]}
    assert found["threads"] == torch.get_num_threads()


def test_the_fastest_of_each_kind_stand_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_MOST_SECONDS", 0.2)
    slow, fast = Slow(), SmallModule()
    found = measure_inference({"slow": slow, "fast": fast}, {"a": slow, "b": fast}, (torch.ones(6, NUM_FEATURES),))
    for times in found["batch_sizes"].values():
        assert (times["fp32"], times["int8"]) == ("fast", "b")
        assert times["fp32_ms"] == times["forms"]["fast"]["ms"] < 10 <= times["forms"]["slow"]["ms"]
        assert list(times["forms"]) == ["slow", "fast", "a", "b"]


def test_slow_models_end_it_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_MOST_SECONDS", 0.05)
    monkeypatch.setattr(Slow, "seconds", 0.2)
    module = Slow()
    found = measure(module, folder)
    assert module.forwards == 2, "one a batch size"
    assert [times["repetitions"] for times in found["batch_sizes"].values()] == [1, 1]
    assert found["batch_sizes"]["1"]["fp32_ms_quartiles"] == [found["batch_sizes"]["1"]["fp32_ms"]] * 2


def test_one_sample_is_one_entry(folder: Path) -> None:
    assert list(measure(SmallModule(), folder, batch=1)["batch_sizes"]) == ["1"]


@pytest.mark.corner
def test_a_run_tells_it_and_is_not_changed_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_report(monkeypatch)
    settings = {"scheme": "w4a8", "callbacks": FixedAllocator("ptq"), "max_rounds": 1, "threads": 1}
    done, state = fit(**settings)
    found = done.summary["inference"]
    assert list(found["batch_sizes"]) == ["1", "32"], "one sample, and the validation batch"
    assert found["threads"] == 1
    assert found["packed_bytes"] < found["fp32_bytes"]

    def fail(*arguments: object) -> None:
        raise RuntimeError("no clock\nanywhere")

    monkeypatch.setattr("fedhq_lightning.finish.complete.measure_inference", fail)
    with pytest.warns(UserWarning, match=r"inference was not measured: RuntimeError: no clock$"):
        other, other_state = fit(SmallModule(), SmallData(), **settings)
    assert other.summary["inference"] is None
    assert same_bits(state, other_state)
    assert same_bits(last_state(done), last_state(other))
    without_scheme, _ = fit(max_rounds=1)
    assert without_scheme.summary["inference"] is None
