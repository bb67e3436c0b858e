"""Layers between the quantized ones: torch's bits where that is promised, on every level of instructions."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhq_lightning.quantize import QuantScheme, convert, prepare, restore
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.quantize.layers_between import LaneMaxPool2d
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
