"""Static activation ranges: calibrated, learned, and the same bits in every form of a layer."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.deploy.export import export_program, load_packed, save_packed
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import LaneOptions, QuantScheme, RangeLearner, attach_ranges, calibrate_ranges, convert
from fedhq_lightning.quantize.activation_ranges import StaticGrid, best_range, is_calibrated
from fedhq_lightning.quantize.grid import integer_range
from fedhq_lightning.quantize.integer_layers import IntegerLayer
from fedhq_lightning.quantize.lanes import prepare, restore
from fedhq_lightning.quantize.qat_layers import gradient_dtype, has_integer_forward
from fedhq_lightning.quantize.static_fake import fake_quantize_static

SCHEMES = ["w2a2s", "w4a4s", "w8a8s"]
# torch's own copy of an input that is padded unevenly
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


class Network(nn.Module):
    """Every kind of layer: whole, grouped and padded unevenly; inputs of both signs and of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.uneven = nn.Conv2d(8, 8, (2, 3), padding="same")
        self.along = nn.Conv1d(8, 4, 3, stride=2, padding=1, padding_mode="circular")
        self.last = nn.Linear(4 * 18, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.uneven(self.depthwise(self.first(images).relu())).relu()
        output: Tensor = self.last(self.along(x.flatten(2)).flatten(1))
        return output


def calibrated(scheme: str, kernel: str = "int8", edge_bits: int | None = None) -> tuple[nn.Module, QuantScheme]:
    """A prepared network whose ranges come from its own first batch."""
    grid = QuantScheme(scheme, edge_bits)
    module = prepare(Network(), "qat", grid, LaneOptions(kernel))  # type: ignore[arg-type]  # a parameter of tests
    calibrate_ranges(module, grid, lambda module: module(images()))
    return module, grid


def images(batch: int = 7) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(batch))


def inputs_of_layers(module: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    entered: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: entered.update({name: args[0]}))
        for name, layer in module.named_children()
    ]
    module(batch)
    for handle in handles:
        handle.remove()
    return entered


def rounded_through(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def plain_reference(x: Tensor, ends: Tensor, bits: int) -> Tensor:
    """The grid of a range in plain operations, rounding taken for the identity by autograd."""
    lowest, highest = integer_range(bits)
    scale = (ends[1] - ends[0]) / (highest - lowest)
    zero_point = lowest - rounded_through(ends[0] / scale)
    return ((rounded_through(x / scale) + zero_point).clamp(lowest, highest) - zero_point) * scale


class TestGradients:
    @pytest.mark.parametrize("bits", range(2, 9))
    @pytest.mark.parametrize("ends", [(-0.8, 1.3), (0.0, 1.0), (-2.5, 0.0), (-9.0, 9.5)], ids=str)
    @pytest.mark.parametrize("shape", [(40, 300), (3, 5, 4, 6)], ids=str)
    def test_are_those_of_autograd(self, bits: int, ends: tuple[float, float], shape: tuple[int, ...]) -> None:
        x, gradient = torch.randn(shape), torch.randn(shape)
        exact = [x.double().requires_grad_(), torch.tensor(ends, dtype=torch.double, requires_grad=True)]
        expected = plain_reference(*exact, bits)
        expected.backward(gradient.double())
        mine = [x.clone().requires_grad_(), torch.tensor(ends, requires_grad=True)]
        rounded = fake_quantize_static(*mine, bits)
        rounded.backward(gradient)
        torch.testing.assert_close(rounded, expected.float(), atol=1e-6, rtol=1e-6)
        assert torch.equal(mine[0].grad != 0, exact[0].grad != 0), "zero beyond the range, and only there"
        torch.testing.assert_close(mine[0].grad, exact[0].grad.float(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mine[1].grad, exact[1].grad.float(), atol=1e-3, rtol=1e-4)

    @pytest.mark.parametrize("kernel", ["int8", "auto", "fake"])
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_of_layers_reach_input_weight_and_range(self, kernel: str, scheme: str) -> None:
        """Against a float network with the reference in front of every layer and weights on their grid."""
        module, grid = calibrated(scheme, kernel)
        plain = restore(copy.deepcopy(module))
        ends = {name: layer.fedhq_activation_range.clone().requires_grad_() for name, layer in plain.named_children()}
        for name, layer in plain.named_children():
            bits = grid.for_layers(plain)[name].activation_bits
            layer.register_forward_pre_hook(
                lambda layer, args, name=name, bits=bits: plain_reference(args[0], ends[name], bits)
            )
            layer.weight.data = convert(module, grid).get_submodule(name).weight
        left, right = images().requires_grad_(), images().requires_grad_()
        learner = RangeLearner(module)
        module(left).square().sum().backward()
        plain(right).square().sum().backward()
        # Kernel int8 goes backward in what this machine is fast at.
        close = {"atol": 1e-4, "rtol": 1e-3}
        if gradient_dtype(left.device) == torch.bfloat16 and kernel == "int8":
            close = {"atol": 0.05, "rtol": 0.05}
        largest = float(right.grad.abs().max())
        torch.testing.assert_close(left.grad / largest, right.grad / largest, **close)
        for name, layer in module.named_children():
            scale = float(ends[name].grad.abs().max())
            torch.testing.assert_close(layer.fedhq_activation_range.grad / scale, ends[name].grad / scale, **close)
            scale = float(plain.get_submodule(name).weight.grad.abs().max())
            torch.testing.assert_close(
                layer.weight.grad / scale, plain.get_submodule(name).weight.grad / scale, **close
            )
        learner.finish()


class TestSameBits:
    @pytest.mark.parametrize("scheme", [*SCHEMES, "w4a4s-g3", "w3a8s"])
    def test_prepared_converted_and_exported(self, scheme: str, tmp_path: Path) -> None:
        module, grid = calibrated(scheme, edge_bits=8 if "-g" in scheme else None)
        deployed = convert(module, grid)
        for batch in (images(), images(1), images(64)):
            entered = inputs_of_layers(deployed, batch)
            for name, x in entered.items():
                if has_integer_forward(module.get_submodule(name), grid.for_layers(module)[name]):
                    torch.testing.assert_close(
                        module.get_submodule(name)(x), deployed.get_submodule(name)(x), atol=0, rtol=0
                    )
            torch.testing.assert_close(module(batch), deployed(batch), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(deployed(batch[:1]), deployed(batch)[:1], atol=0, rtol=0)
        program = export_program(deployed, (images(),), tmp_path / "model.pt2")
        torch.testing.assert_close(program(images(30)), deployed(images(30)), atol=0, rtol=0)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_of_compiled_and_of_eager_kernels(self, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Inputs above the size from which kernels are compiled."""
        module, grid = calibrated("w4a4s")
        layer, deployed = module.uneven, convert(module, grid).uneven
        x = torch.randn(64, 8, 20, 20)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        compiled = [layer(x), deployed(x)]
        monkeypatch.setattr("fedhq_lightning.quantize.compilation.can_compile", lambda: False)
        for output in (*compiled, layer(x)):
            torch.testing.assert_close(output, deployed(x), atol=0, rtol=0)

    @pytest.mark.parametrize("kernel", ["auto", "fake"])
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_fake_kernels_are_within_float_rounding(self, kernel: str, scheme: str) -> None:
        module, grid = calibrated(scheme, kernel)
        torch.testing.assert_close(module(images()), convert(module, grid)(images()), atol=1e-5, rtol=1e-5)

    def test_packed_file(self, tmp_path: Path) -> None:
        module, grid = calibrated("w3a4s", edge_bits=8)
        deployed = convert(module, grid)
        save_packed(deployed, tmp_path / "model.safetensors")
        loaded = load_packed(tmp_path / "model.safetensors", Network())
        torch.testing.assert_close(loaded(images()), deployed(images()), atol=0, rtol=0)

    def test_what_lies_beyond_the_range_becomes_its_end(self) -> None:
        module, grid = calibrated("w8a4s")
        layer = convert(module, grid).last
        least, most = StaticGrid.of(module.last.fedhq_activation_range, 4), 7
        highest = float((most - least.zero_point) * least.scale)
        inside, beyond = torch.full((2, 72), highest), torch.full((2, 72), 1e30)
        assert torch.equal(layer(inside), layer(beyond))


class TestCalibration:
    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_makes_a_smaller_error_than_the_whole_range(self, bits: int) -> None:
        x = torch.randn(50, 400)
        found = best_range(x, bits)
        whole = torch.stack([x.min(), x.max()])

        def error(ends: Tensor) -> float:
            return float((fake_quantize_static(x, ends, bits) - x).square().mean())

        assert error(found) <= error(whole)
        assert (error(found) < 0.5 * error(whole)) == (bits < 8)
        assert torch.equal(found, best_range(x, bits)), "the same values each time"

    def test_of_values_of_one_sign_includes_zero(self) -> None:
        assert best_range(torch.rand(10, 10) + 5, 4)[0] == 0
        assert best_range(-torch.rand(10, 10) - 5, 4)[1] == 0

    def test_takes_inputs_as_the_deployed_model_has_them(self) -> None:
        module, grid = calibrated("w2a2s")
        seen: list[Tensor] = []
        deployed = convert(module, grid)
        deployed.last.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
        deployed(images())
        torch.testing.assert_close(module.last.fedhq_activation_range, best_range(seen[0], 2), atol=1e-5, rtol=1e-5)

    def test_leaves_what_it_cannot_tell(self) -> None:
        module, grid = Network(), QuantScheme("w4a4s")
        reached = calibrate_ranges(module, grid, lambda module: module.last(torch.zeros(2, 72)))
        assert reached == []
        reached = calibrate_ranges(module, grid, lambda module: module.last(torch.full((2, 72), float("nan"))))
        assert reached == []
        assert not is_calibrated(module.last.fedhq_activation_range)

    def test_several_calls_of_a_layer_share_the_widest_range(self) -> None:
        layer, grid = nn.Linear(6, 6), QuantScheme("w8a8s", edge_bits=None)
        low, high = -torch.rand(9, 6), 3 * torch.rand(9, 6)
        calibrate_ranges(layer, grid, lambda layer: (layer(low), layer(high)))
        assert layer.fedhq_activation_range[0] == best_range(low, 8)[0]
        assert layer.fedhq_activation_range[1] == best_range(high, 8)[1]

    def test_ranges_are_no_parameters(self) -> None:
        module = Network()
        before = [name for name, _ in module.named_parameters()]
        assert attach_ranges(module, QuantScheme("w4a4s", overrides={"along": "w4a4", "uneven": "fp"})) == [
            "depthwise.fedhq_activation_range",
            "first.fedhq_activation_range",
            "last.fedhq_activation_range",
        ]
        assert [name for name, _ in module.named_parameters()] == before

    def test_a_tensor_of_the_users_with_their_name_is_refused(self) -> None:
        module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        module[1].register_buffer("fedhq_activation_range", torch.ones(2))
        with pytest.raises(ConfigurationError, match=r"1\.fedhq_activation_range.*another one"):
            attach_ranges(module, QuantScheme("w4a4s"))


class TestNotCalibrated:
    def test_conversion_refuses(self) -> None:
        with pytest.raises(ConfigurationError, match=r"5 of 5 layers have none yet \(first.*calibrate"):
            convert(Network(), QuantScheme("w4a4s"))

    @pytest.mark.parametrize("kernel", ["int8", "auto", "fake"])
    def test_layers_take_dynamic_ranges(self, kernel: str) -> None:
        static, dynamic = (QuantScheme(text, edge_bits=None) for text in ("w4a4s", "w4a4"))
        options = LaneOptions(kernel)  # type: ignore[arg-type]  # a parameter of tests
        module = Network()
        expected = prepare(copy.deepcopy(module), "qat", dynamic, options)(images())
        assert torch.equal(prepare(copy.deepcopy(module), "qat", static, options)(images()), expected)
        deployed = convert(module, static, allow_uncalibrated=True)
        assert torch.equal(deployed(images()), convert(module, dynamic)(images()))
        layers = [layer for layer in deployed.modules() if isinstance(layer, IntegerLayer)]
        assert {str(layer.scheme) for layer in layers} == {"w4a4"}, "as what they are"


class TestRangeLearner:
    def test_makes_a_bad_range_better(self) -> None:
        torch.manual_seed(0)
        layer, grid = nn.Linear(30, 8), QuantScheme("w8a2s", edge_bits=None)
        target, x = copy.deepcopy(layer), torch.randn(64, 30)
        prepare(layer, "qat", grid)
        layer.fedhq_activation_range.copy_(torch.tensor([-6.0, 6.0]))
        learner, losses = RangeLearner(layer), []
        for _ in range(60):
            loss = (layer(x) - target(x)).square().mean()
            loss.backward()
            learner.step()
            losses.append(float(loss.detach()))
        learner.finish()
        assert losses[-1] < 0.5 * losses[0]
        assert -6 < layer.fedhq_activation_range[0] < 0 < layer.fedhq_activation_range[1] < 6

    def test_steps_do_not_depend_on_the_size_of_values_or_loss(self) -> None:
        def learned(size: float, weight: float) -> Tensor:
            held = torch.tensor([-1.0, 2.0]) * size
            module = nn.Module()
            module.register_buffer("fedhq_activation_range", held)
            learner = RangeLearner(module, 0.01)
            for gradient in ([1.0, -2.0], [0.5, -3.0]):
                held.grad = torch.tensor(gradient) * weight
                learner.step()
            learner.finish()
            return held.detach() / size

        torch.testing.assert_close(learned(1.0, 1.0), learned(100.0, 1e-3), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(learned(1.0, 1.0), torch.tensor([-1.06, 2.06]), atol=5e-3, rtol=0)

    def test_keeps_zero_inside_and_something_between_the_ends(self) -> None:
        module = nn.Module()
        module.register_buffer("fedhq_activation_range", torch.tensor([0.0, 1.0]))
        learner = RangeLearner(module, 0.5)
        for _ in range(5):
            module.fedhq_activation_range.grad = torch.tensor([-1.0, 1.0])  # both inwards
            learner.step()
            assert module.fedhq_activation_range[0] <= 0 <= module.fedhq_activation_range[1]
            assert is_calibrated(module.fedhq_activation_range)

    def test_leaves_a_range_without_a_usable_gradient(self) -> None:
        module = nn.Module()
        module.register_buffer("fedhq_activation_range", torch.tensor([-1.0, 1.0]))
        learner = RangeLearner(module)
        learner.step()
        module.fedhq_activation_range.grad = torch.tensor([float("nan"), 1.0])
        learner.step()
        learner.finish()
        assert torch.equal(module.fedhq_activation_range, torch.tensor([-1.0, 1.0]))
        assert not module.fedhq_activation_range.requires_grad

    def test_a_negative_learning_rate_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"range_lr -1: must be 0 or more"):
            LaneOptions(range_lr=-1)
