"""Layers between the quantized ones: torch's bits where that is promised, on every level of instructions."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhq_lightning.models.norms import norm_relu
from fedhq_lightning.models.resnet import ResNet20
from fedhq_lightning.quantize import QuantScheme, convert, prepare, restore
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.quantize.layers_between import LaneGroupNorm, LaneMaxPool2d
from fedhq_lightning.quantize.native.lanes import kernels_of_torch

needs_kernels = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
SCHEME = QuantScheme("w4a8")


def in_lane(layer: nn.Module, mode: Any = "ptq") -> Any:
    """The layer as a lane leaves it, in a model that has one to quantize."""
    return prepare(nn.ModuleList([nn.Linear(2, 2), layer]), mode, SCHEME)[1]


def trained(layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output and gradient of the input."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(x)
    output.backward(gradient)
    assert x.grad is not None
    return [output.detach(), x.grad]


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    """Minus zero is not zero here, and what is no number has bits too."""
    assert ours.stride() == theirs.stride()
    assert torch.equal(ours.contiguous().view(torch.int32), theirs.contiguous().view(torch.int32))


@needs_kernels
@pytest.mark.usefixtures("_on", "level")
class TestMaxPooling:
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize(
        "shape", [(2, 6, 28, 28), (3, 1, 2, 2), (2, 17, 9, 4), (2, 3, 5, 7), (1, 40, 6, 20), (1, 1, 3, 9)], ids=str
    )
    def test_has_the_bits_of_torch(self, shape: tuple[int, ...], channels_last: bool) -> None:
        x = torch.randn(shape).mul(2).round()  # equal values in most windows, zeros of both signs
        for special in (torch.nan, torch.inf, -torch.inf, -0.0):
            x[torch.rand(shape) < 0.1] = special
        x.view(torch.int32)[torch.rand(shape) < 0.05] = 0x7FC00123  # a number that is none, which can be told
        pool = in_lane(nn.MaxPool2d(2))
        assert type(pool) is LaneMaxPool2d
        for images in (x, x.relu()):
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            gradient = torch.randn_like(functional.max_pool2d(images, 2))
            gradient[torch.rand(gradient.shape) < 0.2] = -0.0
            with kernels_of_torch():
                expected = trained(pool, images, gradient)
            for ours, theirs in zip(trained(pool, images, gradient), expected, strict=True):
                assert_same_bits(ours, theirs)

    def test_takes_images_and_gradients_that_lie_with_gaps(self) -> None:
        x, gradient = torch.randn(2, 3, 8, 14)[..., ::2], torch.randn(2, 3, 1, 1).expand(2, 3, 4, 3)
        pool = in_lane(nn.MaxPool2d(2))
        with kernels_of_torch():
            expected = trained(pool, x, gradient)
        for ours, theirs in zip(trained(pool, x, gradient), expected, strict=True):
            assert torch.equal(ours, theirs)

    def test_calls_the_kernel_and_only_for_batches_of_images(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pool, seen = in_lane(nn.MaxPool2d(2)), list[str]()
        plain = functional.max_pool2d
        monkeypatch.setattr(
            functional, "max_pool2d", lambda *args, **kwargs: seen.append("torch") or plain(*args, **kwargs)
        )
        pool(torch.randn(2, 3, 4, 4))
        assert not seen
        assert pool(torch.randn(3, 4, 4)).shape == (3, 2, 2)
        assert pool(torch.randn(0, 3, 4, 4)).shape == (0, 3, 2, 2)
        with pytest.raises(RuntimeError, match="too small"):
            pool(torch.randn(2, 3, 1, 4))
        assert len(seen) == 3

    def test_a_gradient_of_a_gradient_is_refused_when_it_is_asked_for(self) -> None:
        x = torch.randn(2, 3, 4, 4, requires_grad=True)
        [gradient] = torch.autograd.grad(in_lane(nn.MaxPool2d(2))(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no gradient of a gradient"):
            gradient.sum().backward()


def normalized(
    norm: nn.Module, x: Tensor, shortcut: Tensor | None, gradient: Tensor, is_rectified: bool
) -> list[Tensor]:
    """Output, and gradients of input, weight, bias and shortcut."""
    leaves = [
        each.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        for each in (x, shortcut)
        if each is not None
    ]
    output = norm_relu(norm, *leaves) if is_rectified else norm(leaves[0])
    output.backward(gradient)
    gradients = [*(each.grad for each in leaves), *(each.grad for each in norm.parameters())]
    norm.zero_grad()
    return [output.detach(), *gradients]


def error(ours: Tensor, exact: Tensor) -> float:
    """Largest error as a share of the largest value."""
    return float((ours.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-300))


@needs_kernels
@pytest.mark.usefixtures("_on", "level")
class TestGroupNorm:
    @pytest.mark.parametrize("mean", [0.0, 30.0])
    @pytest.mark.parametrize("follows", ["nothing", "relu", "shortcut and relu"])
    @pytest.mark.parametrize(
        "shape", [(2, 16, 32, 32, 8), (3, 20, 7, 5, 4), (2, 6, 3, 11, 3), (1, 33, 9, 6, 11)], ids=str
    )
    def test_is_as_near_to_float64_as_torch_is(self, shape: tuple[int, ...], follows: str, mean: float) -> None:
        *size, groups = shape
        x, shortcut, gradient = (torch.randn(size).contiguous(memory_format=torch.channels_last) for _ in range(3))
        x += mean
        norm = nn.GroupNorm(groups, size[1])
        for each in norm.parameters():
            nn.init.normal_(each)
        given = (x, shortcut if "shortcut" in follows else None, gradient)
        ours = normalized(in_lane(norm), *given, "relu" in follows)
        theirs = normalized(restore(norm), *given, "relu" in follows)
        doubled = (None if each is None else each.double() for each in given)
        exact = normalized(norm.double(), *doubled, "relu" in follows)
        assert len(ours) == len(exact)
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        for mine, torchs, true in zip(ours, theirs, exact, strict=True):
            assert error(mine, true) < max(error(torchs, true), 5e-7)

    @pytest.mark.parametrize("channels", [16, 21])
    def test_every_level_has_the_same_bits_and_every_image_its_own(self, channels: int) -> None:
        x, shortcut, gradient = (
            torch.randn(3, channels, 6, 7).contiguous(memory_format=torch.channels_last) for _ in range(3)
        )
        norm = in_lane(nn.GroupNorm({16: 8, 21: 3}[channels], channels))
        results = normalized(norm, x, shortcut, gradient, True)
        torch.ops.fedhq.use_level("scalar")
        for ours, plain in zip(results, normalized(norm, x, shortcut, gradient, True), strict=True):
            assert torch.equal(ours, plain)
        for ours, alone in zip(results[:3], normalized(norm, x[1:2], shortcut[1:2], gradient[1:2], True), strict=False):
            assert torch.equal(ours[1:2], alone)

    def test_is_for_training_on_images_with_channels_last(self) -> None:
        norm = in_lane(nn.GroupNorm(2, 4))
        x = torch.randn(2, 4, 5, 5, requires_grad=True)
        last = x.detach().contiguous(memory_format=torch.channels_last)
        assert norm(last).grad_fn.name() != "NativeGroupNormBackward0"
        for images in (x, last[:, :, :1, :1], torch.randn(3, 4), torch.randn(2, 4, 6), last.double()):
            assert norm.to(images.dtype)(images).grad_fn.name() == "NativeGroupNormBackward0"
        norm.float().eval()
        assert norm(last).grad_fn.name() == "NativeGroupNormBackward0"
        assert torch.equal(norm_relu(norm, last, last), functional.relu(functional.group_norm(last, 2) + last))

    def test_hooks_see_the_norm_alone(self) -> None:
        norm, seen = in_lane(nn.GroupNorm(2, 4)), list[Tensor]()
        x = torch.randn(2, 4, 5, 5).contiguous(memory_format=torch.channels_last)
        expected = norm_relu(norm, x, x)
        norm.register_forward_hook(lambda module, given, output: seen.append(output))
        assert torch.equal(norm_relu(norm, x, x), expected)
        assert (seen[0] < 0).any()

    def test_what_is_no_number_shows(self) -> None:
        x = torch.randn(2, 4, 5, 5).contiguous(memory_format=torch.channels_last)
        x[1, 2, 3, 3] = torch.nan
        output = norm_relu(in_lane(nn.GroupNorm(2, 4)), x)
        assert output[0].isfinite().all()
        assert output[1, :2].isfinite().all()
        assert output[1, 2:].isnan().all()

    @pytest.mark.parametrize("mode", ["ptq", "qat"])
    def test_a_residual_network_in_evaluation_is_torchs_and_in_training_near_it(self, mode: Any) -> None:
        model = prepare(ResNet20(3, width=4), mode, SCHEME)
        x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        plain = copy.deepcopy(model)
        for norm in plain.modules():
            if isinstance(norm, LaneGroupNorm):
                norm.__class__ = nn.GroupNorm
        assert not torch.equal(model(x), plain(x))
        torch.testing.assert_close(model(x), plain(x), rtol=0.1, atol=0.1)  # a step in which one value rounds otherwise
        assert torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_prepare_takes_plain_norms_and_restore_gives_them_back(mode: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.GroupNorm(2, 4, affine=False))
    prepare(model, mode, SCHEME)
    assert [type(each) for each in model[1:]] == [LaneGroupNorm, nn.GroupNorm]
    assert type(restore(model)[1]) is nn.GroupNorm


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_prepare_takes_plain_pools_and_restore_gives_them_back(mode: Any) -> None:
    class Own(nn.MaxPool2d):
        pass

    fitting = [nn.MaxPool2d(2), nn.MaxPool2d((2, 2), stride=(2, 2))]
    others = [
        nn.MaxPool2d(3),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
        Own(2),
    ]
    model = nn.Sequential(nn.Conv2d(1, 2, 3), *fitting, *others)
    kinds = [type(each) for each in model]
    prepare(model, mode, SCHEME)
    assert [type(each) for each in model[1:]] == [LaneMaxPool2d, LaneMaxPool2d, *kinds[3:]]
    again = copy.deepcopy(model)
    assert [type(each) for each in restore(again)] == kinds
    assert [type(each) for each in prepare(model, "fp", SCHEME)] == kinds


@needs_kernels
@pytest.mark.usefixtures("_on")
def test_deployed_and_exported_models_have_torchs_operations() -> None:
    model = prepare(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), "qat", SCHEME)
    assert type(convert(model, SCHEME)[2]) is nn.MaxPool2d
    x = torch.randn(2, 1, 8, 8)
    program = torch.export.export(model[1:], (x,))
    assert not any("fedhq" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), model[1:](x))
