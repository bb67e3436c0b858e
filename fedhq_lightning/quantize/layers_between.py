"""What lies between the quantized layers, by kernels of our own while a lane trains."""

from torch import Tensor, nn

from fedhq_lightning.quantize.native.lanes import native


class LaneMaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d` over 2 x 2 pixels, each beside the other: torch's bits, forward and backward."""

    plain_type = nn.MaxPool2d

    def forward(self, input: Tensor) -> Tensor:
        """([batch,] channels, height, width) to ([batch,] channels, height // 2, width // 2)."""
        kernels = native(input)
        if kernels is None or input.dim() != 4 or min(input.shape[2:]) < 2 or not input.numel():
            plain: Tensor = super().forward(input)
            return plain
        output: Tensor = kernels.max_pool(input)
        return output


def prepare_between(module: nn.Module) -> None:
    """Give the layers between those of a lane its kernels, in place; `restore` undoes it."""
    for layer in module.modules():
        if type(layer) is nn.MaxPool2d and _has_plain_windows(layer):
            layer.__class__ = LaneMaxPool2d


def _has_plain_windows(pool: nn.MaxPool2d) -> bool:
    windows = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    is_plain = all(each in (wanted, (wanted, wanted)) for each, wanted in zip(windows, (2, 2, 0, 1), strict=True))
    return is_plain and not pool.ceil_mode and not pool.return_indices
