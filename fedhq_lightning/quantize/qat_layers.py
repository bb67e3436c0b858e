"""Layers of the QAT lane: on the deployment grid forward, straight-through gradients backward.

Where integers are chosen (kernel `int8`, or `auto` and they are faster), the forward is `integer_forward`, which the
deployed model runs too. The backward takes the integers themselves (`integer_gradients`); with a static range, or if
the recipe says so, the values that they stand for, and computes in bf16 where the device is fast at it, else in fp32.
Elsewhere weights and activations are fake-quantized by fused kernels.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedhq_lightning.quantize import integer_forward, integer_gradients
from fedhq_lightning.quantize.activation_ranges import StaticGrid, calibrated_range
from fedhq_lightning.quantize.convolution import is_channels_last, output_positions, padding_amounts
from fedhq_lightning.quantize.fused_fake import fake_quantize_activation, fake_quantize_weight
from fedhq_lightning.quantize.int8_training import Factor, linear_gradients, output_dtype
from fedhq_lightning.quantize.integer_convolution import Geometry
from fedhq_lightning.quantize.integer_forward import Weight, dequantize_rows, image_on_grid
from fedhq_lightning.quantize.integer_matmul import MAX_INNER_SIZE
from fedhq_lightning.quantize.kernel_choice import integers_pay_in_convolution, integers_pay_in_linear
from fedhq_lightning.quantize.lane_options import DEFAULT_QAT_BACKWARD, QatBackward, QatKernel
from fedhq_lightning.quantize.native.lanes import native, takes_images, takes_rows
from fedhq_lightning.quantize.scheme import LayerScheme, flattened_input_size
from fedhq_lightning.quantize.static_fake import fake_quantize_static, static_gradients

_ROWS_AT_ONCE = 256


def has_integer_forward(layer: nn.Module, scheme: LayerScheme) -> bool:
    """Whether a layer's forward on a grid is one int8 product: activations too, one scale a channel, one group."""
    is_whole = scheme.group_size is None and getattr(layer, "groups", 1) == 1
    return scheme.activation_bits is not None and is_whole and flattened_input_size(layer) <= MAX_INNER_SIZE


@cache
def gradient_dtype(device: torch.device) -> torch.dtype:
    """What a backward on values computes in: bf16 on GPUs and on CPUs with instructions for it, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    names = ("avx512_bf16", "amx_bf16", "bf16")
    is_fast = device.type == "cpu" and any(torch.cpu.get_capabilities().get(name, False) for name in names)
    return torch.bfloat16 if is_fast else torch.float32


class _QatLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, static_range: Tensor | None, scheme: LayerScheme,
        products: torch.dtype,
    ) -> Tensor:  # fmt: skip
        on_grid = Weight.of(weight, scheme)
        output, activation = integer_forward.linear(x, on_grid, bias, scheme, _grid(static_range, scheme))
        # Which values were clipped, and by how much rounding missed the others, the integers do not tell.
        clipped = (None, None) if static_range is None else (x, static_range)
        ctx.save_for_backward(*activation, on_grid.integers, on_grid.scale, *clipped)
        ctx.scheme, ctx.products = scheme, products
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x_integers, x_scale, zero_point, weight_integers, weight_scale, x_before, static_range = ctx.saved_tensors
        x_dtype, weight_dtype, bias_dtype = ctx.dtypes
        dtype = ctx.products
        grad_x = grad_weight = grad_bias = grad_range = None
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum(0, dtype=torch.float32).to(bias_dtype)
        if dtype is torch.int8:
            factors = Factor(x_integers, x_scale, zero_point), Factor(weight_integers, weight_scale)
            wanted = zip((x_dtype, weight_dtype), ctx.needs_input_grad, strict=False)
            grad_x, grad_weight = linear_gradients(
                gradient, *factors, [each if needed else None for each, needed in wanted]
            )
            return grad_x, grad_weight, grad_bias, None, None, None
        low = gradient.to(dtype)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
            weight = dequantize_rows(weight_integers, weight_scale, torch.zeros_like(weight_scale), dtype)
            grad_x = (low @ weight).to(x_dtype)
            del weight  # before the other gradient needs memory
            if static_range is not None:
                bits, needs_range = ctx.scheme.activation_bits, ctx.needs_input_grad[3]
                grad_x, grad_range = static_gradients(x_before, grad_x, static_range, bits, needs_range)
        if ctx.needs_input_grad[1]:
            x = dequantize_rows(x_integers, x_scale, zero_point, dtype)
            grad_weight = x.new_empty(low.shape[1], x.shape[1], dtype=weight_dtype)
            for start in range(0, low.shape[1], _ROWS_AT_ONCE):  # in `dtype` beside the gradient: a few rows only
                rows = slice(start, start + _ROWS_AT_ONCE)
                grad_weight[rows] = low[:, rows].t() @ x
        return grad_x, grad_weight, grad_bias, grad_range, None, None


class _Setting(NamedTuple):
    scheme: LayerScheme
    amounts: tuple[int, ...]
    geometry: Geometry
    products: torch.dtype


class _QatConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, static_range: Tensor | None, setting: _Setting
    ) -> Tensor:
        scheme, amounts, geometry, _ = setting
        on_grid = Weight.of(weight, scheme)
        channels_last = is_channels_last(x) or is_channels_last(weight)
        kernel = tuple(weight.shape[2:])
        output, scale, zero_point = integer_forward.convolution(
            x, on_grid, kernel, bias, scheme, amounts, geometry, channels_last, _grid(static_range, scheme)
        )
        # The input itself, which the layer before often keeps as well: bytes would take memory on top of it.
        ctx.save_for_backward(x, scale, zero_point, on_grid.integers, on_grid.scale, static_range)
        ctx.setting, ctx.shape = setting, weight.shape
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, scale, zero_point, weight_integers, weight_scale, static_range = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        scheme, amounts, geometry, dtype = ctx.setting
        left, right, top, bottom = amounts
        layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
        grad_bias = gradient.sum((0, 2, 3), dtype=torch.float32).to(bias_dtype) if ctx.needs_input_grad[2] else None
        if dtype is torch.int8:
            grad_x, grad_weight = integer_gradients.convolution(
                *(gradient, input, scale, zero_point, weight_integers.view(ctx.shape), weight_scale),
                *(scheme.activation_bits, amounts, geometry, ctx.needs_input_grad[:2]),
            )
            grad_x = None if grad_x is None else grad_x.to(input.dtype).contiguous(memory_format=layout)
            grad_weight = None if grad_weight is None else grad_weight.to(weight_dtype)
            return grad_x, grad_weight, grad_bias, None, None
        is_even = left == right and top == bottom
        x = image_on_grid(input, scale, zero_point, scheme.activation_bits, dtype)
        if not is_even:
            x = F.pad(x, (left, right, top, bottom))
        weight = dequantize_rows(weight_integers, weight_scale, torch.zeros_like(weight_scale), dtype)
        low = gradient.to(dtype).contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            *(low, x, weight.view(ctx.shape).contiguous(memory_format=torch.channels_last), None),
            *(geometry.stride, (top, left) if is_even else (0, 0), geometry.dilation, False, (0, 0), 1),
            (ctx.needs_input_grad[0] or ctx.needs_input_grad[3], ctx.needs_input_grad[1], False),
        )
        grad_range = None
        if grad_x is not None:
            if not is_even:
                grad_x = F.pad(grad_x, (-left, -right, -top, -bottom))
            grad_x = grad_x.to(input.dtype).contiguous(memory_format=layout)
            if static_range is not None:
                bits, needs_range = scheme.activation_bits, ctx.needs_input_grad[3]
                grad_x, grad_range = static_gradients(input, grad_x, static_range, bits, needs_range)
        grad_weight = None if grad_weight is None else grad_weight.to(weight_dtype)
        return grad_x, grad_weight, grad_bias, grad_range, None


def _grid(static_range: Tensor | None, scheme: LayerScheme) -> StaticGrid | None:
    if static_range is None or scheme.activation_bits is None:
        return None
    return StaticGrid.of(static_range, scheme.activation_bits)


def _on_activation_grid(x: Tensor, static_range: Tensor | None, scheme: LayerScheme) -> Tensor:
    """An input, (rows, ...), as its fake-quantized layer takes it."""
    if scheme.activation_bits is None:
        return x
    if static_range is None:
        return fake_quantize_activation(x, scheme.activation_bits)
    return fake_quantize_static(x, static_range, scheme.activation_bits)


def _products(layer: "QatLayer", x: Tensor, static_range: Tensor | None) -> torch.dtype:
    """What the products of the backward are of: int8, where every row or image has a grid of its own, or values."""
    is_int8 = layer.qat_backward == "int8" and static_range is None
    return torch.int8 if is_int8 else gradient_dtype(x.device)


def _is_integer(layer: "QatLayer", pays: Callable[[], bool]) -> bool:
    if not has_integer_forward(layer, layer.scheme):
        return False
    return pays() if layer.kernel == "auto" else True


def _activation(x: Tensor) -> Tensor:
    # Autocast would have cast a plain layer's input, and its answer takes that dtype.
    return x.to(output_dtype(x))


class QatLinear(nn.Linear):
    """`nn.Linear` whose forward pass is on its deployment grid."""

    plain_type: type[nn.Module] = nn.Linear
    scheme: LayerScheme
    kernel: QatKernel = "auto"
    qat_backward: QatBackward = DEFAULT_QAT_BACKWARD

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if input.numel() == 0:
            return super().forward(input)
        rows, static_range = input.reshape(-1, input.shape[-1]), calibrated_range(self, self.scheme)
        if _is_integer(self, lambda: integers_pay_in_linear(input, self.weight, own=static_range is None)):
            kernels, products = native(input, self.weight, self.bias), _products(self, input, static_range)
            if kernels is not None and static_range is None and takes_rows(input, self.weight):
                bits = self.scheme.weight_bits, self.scheme.activation_bits
                trained: Tensor = kernels.grid_linear(input, self.weight, self.bias, *bits, products)
                return trained
            output: Tensor = _QatLinear.apply(  # type: ignore[no-untyped-call]  # untyped in torch
                _activation(rows), self.weight, self.bias, static_range, self.scheme, products
            )
        else:
            rows = _on_activation_grid(rows, static_range, self.scheme)
            output = F.linear(rows, fake_quantize_weight(self.weight, self.scheme), self.bias)
        return output.view(*input.shape[:-1], self.out_features)


class QatConv1d(nn.Conv1d):
    """`nn.Conv1d` on its grid, one activation range per sample, or a static one."""

    plain_type: type[nn.Module] = nn.Conv1d
    scheme: LayerScheme
    kernel: QatKernel = "auto"
    qat_backward: QatBackward = DEFAULT_QAT_BACKWARD

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, length) to ([batch,] out channels, out length)."""
        return _qat_convolution(self, input)


class QatConv2d(nn.Conv2d):
    """`nn.Conv2d` on its grid, one activation range per sample, or a static one."""

    plain_type: type[nn.Module] = nn.Conv2d
    scheme: LayerScheme
    kernel: QatKernel = "auto"
    qat_backward: QatBackward = DEFAULT_QAT_BACKWARD

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, height, width) to ([batch,] out channels, out height, out width)."""
        return _qat_convolution(self, input)


QatLayer: TypeAlias = QatLinear | QatConv1d | QatConv2d


def _qat_convolution(conv: QatConv1d | QatConv2d, input: Tensor) -> Tensor:
    if input.numel() == 0:
        empty: Tensor = conv._conv_forward(input, conv.weight, conv.bias)
        return empty
    is_single = input.dim() == 1 + len(conv.kernel_size)
    x = input.unsqueeze(0) if is_single else input
    own = calibrated_range(conv, conv.scheme) is None
    if _is_integer(conv, lambda: integers_pay_in_convolution(x, conv.weight, output_positions(conv, x), own)):
        output = _integer_convolution(conv, _activation(x))
    else:
        x = _on_activation_grid(x, calibrated_range(conv, conv.scheme), conv.scheme)
        output = conv._conv_forward(x, fake_quantize_weight(conv.weight, conv.scheme), conv.bias)
    return output.squeeze(0) if is_single else output


def _integer_convolution(conv: QatConv1d | QatConv2d, x: Tensor) -> Tensor:
    x, amounts, geometry = integer_forward.in_two_dimensions(
        x, conv.stride, conv.dilation, padding_amounts(conv), conv.padding_mode
    )
    is_flat = len(conv.kernel_size) == 1
    weight = conv.weight.unsqueeze(2) if is_flat else conv.weight
    static_range, scheme = calibrated_range(conv, conv.scheme), conv.scheme
    kernels, products = native(x, weight, conv.bias), _products(conv, x, static_range)
    output: Tensor
    if kernels is not None and static_range is None and takes_images(x, weight, amounts):
        channels_last = is_channels_last(x) or is_channels_last(weight)
        output = kernels.grid_convolution(
            *(x, weight, conv.bias, scheme.weight_bits, scheme.activation_bits, products),
            *(geometry.stride, amounts, geometry.dilation, channels_last),
        )
    else:
        setting = _Setting(scheme, amounts, geometry, products)
        output = _QatConvolution.apply(  # type: ignore[no-untyped-call]  # untyped in torch
            x, weight, conv.bias, static_range, setting
        )
    return output.squeeze(2) if is_flat else output
