"""What a run's `lanes` change."""

from typing import Any

import pytest
import torch
from torch import nn

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import lane_fit, run_description
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.quantize.native.lanes import kernels_of_torch, native_level

from ..small_federation import SmallModule, same_bits, trainer
from .runs import fit

INT8 = {"ptq": {"*": "int8"}}
LOW = QuantScheme("w2a8", edge_bits=None)


@pytest.mark.filterwarnings("ignore:uplink 'weights' rounds")
@pytest.mark.usefixtures("quick")
class TestLanes:
    @pytest.mark.usefixtures("torch_kernels")
    def test_small_layers_train_in_floating_point_on_kernels_of_torch_unless_told_otherwise(self) -> None:
        """An fp client and a PTQ client then differ in nothing."""
        plain = fit(callbacks=FixedAllocator("fp"), scheme=LOW)[1]
        assert same_bits(fit(callbacks=FixedAllocator("ptq"), scheme=LOW)[1], plain)
        integers = fit(callbacks=FixedAllocator("ptq"), scheme=LOW, lanes=LaneOptions(layer_kernels=INT8))[1]
        assert not same_bits(integers, plain)

    def test_small_layers_train_in_int8_on_kernels_of_our_own(self) -> None:
        if native_level() is None:
            pytest.skip("no kernels of our own on this host")
        integers = fit(callbacks=FixedAllocator("ptq"), scheme=LOW)[1]
        with kernels_of_torch():
            same = fit(callbacks=FixedAllocator("ptq"), scheme=LOW, lanes=LaneOptions(layer_kernels=INT8))[1]
        assert same_bits(integers, same)

    @pytest.mark.parametrize("kernel", ["int8", "fake"])
    def test_kernels_of_qat_agree(self, kernel: str) -> None:
        settings: dict[str, Any] = {"callbacks": FixedAllocator("qat"), "scheme": "w4a8", "max_rounds": 1}
        settings |= {"uplink": "delta"}
        wanted = fit(**settings)[1]
        got = fit(**settings, lanes=LaneOptions(qat_kernel=kernel))[1]  # type: ignore[arg-type]  # one of the two
        for name, value in wanted.items():
            torch.testing.assert_close(got[name], value, atol=0.02, rtol=0)

    def test_stochastic_rounding_is_part_of_the_seed(self) -> None:
        lanes = LaneOptions(stochastic_rounding=True, layer_kernels=INT8)
        settings: dict[str, Any] = {"callbacks": FixedAllocator("ptq"), "scheme": "w4a8", "lanes": lanes}
        first = fit(**settings)[1]
        assert same_bits(fit(**settings)[1], first)
        nearest = LaneOptions(layer_kernels=INT8)
        assert not same_bits(fit(**settings | {"lanes": nearest})[1], first)

    @pytest.mark.parametrize(("mode", "corrects"), [("ptq", True), ("qat", False), ("fp", False)])
    def test_bias_correction_is_for_ptq(self, mode: Any, corrects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        corrected: list[nn.Module] = []

        def correct_bias(module: nn.Module, *arguments: Any) -> None:
            corrected.append(module)
            return real(module, *arguments)

        real = lane_fit.correct_bias
        monkeypatch.setattr(lane_fit, "correct_bias", correct_bias)
        settings: dict[str, Any] = {"callbacks": FixedAllocator(mode), "scheme": LOW, "max_rounds": 2}
        plain, lanes = fit(**settings)[1], LaneOptions(bias_correction=True)
        done, state = fit(**settings, lanes=lanes)
        assert len(corrected) == corrects * done.summary["mode_counts"]["ptq"]
        assert same_bits(state, plain) is not corrects
        assert same_bits(fit(**settings, lanes=lanes)[1], state)

    def test_a_pattern_without_a_layer_is_refused_before_anything_is_written(self, tmp_path: Any) -> None:
        lanes = LaneOptions(layer_kernels={"qat": {"net.7": "int8"}})
        with pytest.raises(ConfigurationError, match=r"layer_kernels qat 'net.7' matches no layer; .* net.0, net.2"):
            fit(SmallModule(), scheme="w4a8", lanes=lanes, default_root_dir=tmp_path / "runs")
        assert not (tmp_path / "runs").exists()

    def test_a_resumed_run_keeps_its_lanes_and_its_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done, _ = fit(scheme="w4a8", max_rounds=2)
        with pytest.raises(ConfigurationError, match="lanes"):
            fit(scheme="w4a8", max_rounds=2, lanes=LaneOptions("fake"), ckpt_path=done.run_dir)
        monkeypatch.setattr(run_description, "has_compiler", lambda: not done.summary["compiled_kernels"])
        with pytest.raises(ConfigurationError, match="compiled_kernels"):
            fit(scheme="w4a8", max_rounds=2, ckpt_path=done.run_dir)

    def test_wrong_kernels_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="qat_kernel 'int4': allowed are auto, int8, fake"):
            trainer(lanes=LaneOptions("int4"))  # type: ignore[arg-type]  # the mistake under test
