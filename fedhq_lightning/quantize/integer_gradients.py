"""The backward pass of a layer on the deployment grid, in integers: of the QAT lane, unless the recipe says otherwise.

As in the linear layers of the PTQ lane (`int8_training.linear_gradients`, which those of this lane call too), a
gradient takes up the scale that runs along the inner dimension of its product before it is quantized itself, to 8 bits.
So the other factor is what the forward pass had: the weight's integers for the input's gradient, with one scale for
every image; the input's for the weight's gradient, with one for every channel. What the input's zero points add to the
sums is taken off them, exactly.
"""

import torch
from torch import Tensor

from fedhq_lightning.quantize.compilation import compiled
from fedhq_lightning.quantize.int8_convolution import input_gradient, mirror, patch_products
from fedhq_lightning.quantize.int8_training import rescale_rows, round_to_scale, symmetric_scale
from fedhq_lightning.quantize.integer_convolution import ZERO, Geometry, signed
from fedhq_lightning.quantize.integer_forward import quantize_image


@compiled
def _quantize_gradient(
    gradient: Tensor, weight_scale: Tensor, x_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A gradient (batch, out, height, width) in the two forms that its products take.

    First with the weight's scale (out, 1) in it, as bytes (batch, height, width, out) with `ZERO` for zero, and scales
    (batch, 1, 1, 1); then with the input's (batch, 1, 1, 1), as int8, scales (1, out, 1, 1), and sums (batch, out).
    """
    gradient = gradient.float()
    folded = gradient * weight_scale.view(1, -1, 1, 1)
    image_scale = symmetric_scale(folded, (1, 2, 3))
    by_image = (round_to_scale(folded, image_scale) + ZERO).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    folded = gradient * x_scale
    channel_scale = symmetric_scale(folded, (0, 2, 3))
    by_channel = round_to_scale(folded, channel_scale).permute(0, 2, 3, 1).contiguous()
    sums = by_channel.to(torch.int32).sum((1, 2), dtype=torch.int32)
    return by_image, image_scale, by_channel.to(torch.int8), channel_scale, sums


def convolution(
    gradient: Tensor, x: Tensor, x_scale: Tensor, zero_point: Tensor, weight: Tensor, weight_scale: Tensor, bits: int,
    amounts: tuple[int, ...], geometry: Geometry, needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of a convolution's input and weight.

    Args:
        gradient: (batch, out, height, width) floating point.
        x: (batch, channels, height, width), as it came into the layer.
        x_scale: (batch, 1, 1, 1), as the forward pass found it.
        zero_point: fp32, as `x_scale`.
        weight: int8 (out, channels, *kernel).
        weight_scale: (out, 1).
        bits: Of the activations' grid.
        amounts: As in `integer_forward.convolution`.
        geometry: Likewise.
        needs: Which of the two are asked for.

    Returns:
        fp32, shaped as `x` and as `weight`.
    """
    left, _, top, _ = amounts
    by_image, image_scale, by_channel, channel_scale, sums = _quantize_gradient(gradient, weight_scale, x_scale)
    grad_x = grad_weight = None
    if needs[0]:
        ones = torch.ones(weight.shape[1], device=weight.device)
        mirrored = mirror(weight).contiguous()
        grad_x = input_gradient(by_image, mirrored, ones, x.shape[2:], (top, left), geometry) * image_scale
    if needs[1]:
        padded, *_ = quantize_image(x, bits, amounts, (x_scale, zero_point))
        total = patch_products(by_channel, signed(padded), weight.shape[2:], geometry)
        # In fp32 sums of zero points times gradients would be rounded.
        total = total - (sums.long() * zero_point.long().view(-1, 1)).sum(0).unsqueeze(1)
        by_tap = rescale_rows(total, channel_scale.view(-1, 1), torch.float32).view(len(weight), -1, weight.shape[1])
        grad_weight = by_tap.movedim(2, 1).reshape(weight.shape)
    return grad_x, grad_weight
