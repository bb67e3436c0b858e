import pytest
import torch
from torch import Tensor

from fedhq_lightning.quantize.fused_fake import fake_quantize_activation, fake_quantize_weight
from fedhq_lightning.quantize.grid import quantize_activation, round_to_grid
from fedhq_lightning.quantize.scheme import LayerScheme


def layouts(x: Tensor) -> list[Tensor]:
    views = [x, x.double(), x.bfloat16(), torch.stack([x, x], dim=-1)[..., 0]]
    return [*views, x.to(memory_format=torch.channels_last)] if x.dim() == 4 else [*views, x.t().contiguous().t()]


@pytest.mark.parametrize("scheme", ["w2", "w3", "w4a8", "w8", "w3a8-g9", "w4-g3"])
@pytest.mark.parametrize("shape", [(6, 36), (6, 4, 3, 3)])
def test_weights_are_on_their_grid_and_gradients_pass(shape: tuple[int, ...], scheme: str) -> None:
    grid = LayerScheme.parse(scheme)
    for weight in layouts(torch.randn(shape)):
        given = weight.detach().requires_grad_()
        rounded = fake_quantize_weight(given, grid)
        assert rounded.dtype == weight.dtype
        assert torch.equal(rounded, round_to_grid(weight, grid).to(weight.dtype))
        gradient = torch.randn_like(rounded)
        rounded.backward(gradient)
        assert torch.equal(given.grad, gradient)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(6, 36), (6, 4, 3, 3)])
def test_activations_are_on_their_grid_and_gradients_pass(shape: tuple[int, ...], bits: int) -> None:
    for x in layouts(torch.randn(shape)):
        given = x.detach().requires_grad_()
        rounded = fake_quantize_activation(given, bits)
        integers, scale, zero_point = quantize_activation(x, bits, tuple(range(1, x.dim())))
        assert rounded.dtype == x.dtype
        assert torch.equal(rounded, ((integers.float() - zero_point) * scale).to(x.dtype))
        gradient = torch.randn_like(rounded)
        rounded.backward(gradient)
        assert torch.equal(given.grad, gradient)


def test_clipped_weights_keep_their_gradient() -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scheme = LayerScheme(2, None)
    rounded = fake_quantize_weight(weight, scheme)
    rounded.sum().backward()
    assert (weight.detach().abs().amax(1) > 1.2 * rounded.detach().abs().amax(1)).all()
    assert torch.equal(weight.grad, torch.ones_like(weight))
