import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedhq_lightning.quantize.convolution import in_patch_order, pad, padding_amounts, patches

CASES = [
    nn.Conv2d(2, 3, 3),
    nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2)),
    nn.Conv2d(2, 3, 3, dilation=(2, 1), padding="same"),
    nn.Conv2d(2, 3, (2, 4), padding="same"),
    nn.Conv2d(2, 3, 3, padding="valid"),
    nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"),
    nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"),
    nn.Conv2d(2, 3, 5, stride=3, padding=2, padding_mode="replicate", dilation=1),
    nn.Conv1d(2, 3, 3, stride=2, dilation=2, padding=3),
    nn.Conv1d(2, 3, 4, padding="same", padding_mode="replicate"),
    nn.Conv2d(2, 3, 1),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's, about its own copy
@pytest.mark.parametrize("conv", CASES, ids=repr)
def test_padded_patches_times_weights_are_the_convolution(conv: nn.Conv1d | nn.Conv2d) -> None:
    conv = conv.double()
    x = torch.randn(2, 2, *[9, 11][: len(conv.kernel_size)], dtype=torch.float64)
    expected = conv(x)
    padded = pad(x, padding_amounts(conv), conv.padding_mode)
    windows = patches(padded, conv.kernel_size, conv.stride, conv.dilation)
    assert windows.shape[1:-1] == expected.shape[2:]
    torch.testing.assert_close(F.linear(windows, in_patch_order(conv.weight), conv.bias).movedim(-1, 1), expected)
