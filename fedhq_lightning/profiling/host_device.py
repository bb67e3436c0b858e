"""This host as a device: its peaks, bandwidth and overhead, measured in seconds, to predict step times from.

Nothing measured here decides anything in a run: the virtual clock knows shipped profiles only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedhq_lightning.devices.device_profile import DeviceProfile
from fedhq_lightning.profiling.timing import Clock, Work, time_in_turns
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.quantize.integer_matmul import integer_matmul
from fedhq_lightning.quantize.kernel_choice import has_fast_integers
from fedhq_lightning.quantize.qat_layers import gradient_dtype

_SIDE = {"cpu": 1024, "cuda": 8192}
_STREAM_VALUES = {"cpu": 2**23, "cuda": 2**27}
_OPERATORS = 200
_BLOCK_SECONDS = 0.02
_ROUNDS = 21
_LINK = 1e9  # a host is not asked for its link; no prediction of a step needs it


@dataclass(frozen=True)
class HostDevice:
    """This host, as the model takes it.

    Attributes:
        profile: Its figures, called `host`.
        linear_slowdown: How many times as long a plain fp32 matrix product takes as the peak would have it: 1 or more.
            It belongs to the host's library and not to any device, so no shipped factor holds it.
    """

    profile: DeviceProfile
    linear_slowdown: float = 1.0


def measure_host(
    device: torch.device,
    on_block: Callable[[], None] = lambda: None,
    clock: Callable[[torch.device], Clock] = Clock,
) -> HostDevice:
    """Measure this host with torch's present number of threads.

    Peaks are square products of 1,024 on a CPU (8,192 on a GPU); that of fp32 is the faster of those and of a 3x3
    convolution of 128 channels, since a library can be far below the processor's peak in one of them. Bandwidth is that
    of a copy of 32 MiB (512 MiB), both ways counted, and the overhead is that of a chain of products of 16 numbers,
    forward and backward.

    Args:
        device: What to measure.
        on_block: Called before each block of measurements; may raise to end it all.
        clock: Makes what tells the time; wall seconds by default.

    Returns:
        The host; all figures of its profile are measured, but for its link.
    """
    side, values = _SIDE.get(device.type, 1024), _STREAM_VALUES.get(device.type, 2**23)
    left, right = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    works: dict[str, Work] = {"fp32": repeated(device, partial(torch.mm, left, right), clock)}
    image = torch.randn(16, 128, 28, 28, device=device).contiguous(memory_format=torch.channels_last)
    filters = torch.randn(128, 128, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    works["convolution"] = repeated(device, partial(torch.conv2d, image, filters, padding=1), clock)
    bf16 = gradient_dtype(device) is torch.bfloat16
    if bf16:
        works["bf16"] = repeated(device, partial(torch.mm, left.bfloat16(), right.bfloat16()), clock)
    integers = has_fast_integers(device)
    if integers:
        first, second = ((each * 40).clamp(-127, 127).to(torch.int8) for each in (left, right))
        works["int8"] = repeated(device, partial(integer_matmul, first, second), clock)
    source, target = torch.zeros(values, device=device), torch.zeros(values, device=device)
    works["copy"] = repeated(device, partial(target.copy_, source), clock)
    works["operators"] = repeated(device, partial(_chain, torch.ones(16, device=device, requires_grad=True)), clock)
    # A peak is what is reached at best.
    seconds = {key: min(each.blocks) for key, each in time_in_turns(works, _BLOCK_SECONDS, _ROUNDS, on_block).items()}
    flops = 2.0 * side**3
    linear_peak = flops / seconds["fp32"]
    fp32_peak = max(linear_peak, 2.0 * image.numel() * filters[0].numel() / seconds["convolution"])
    fused = "fused" if has_compiler() else "fake"
    profile = DeviceProfile(
        name="host",
        fp32_flops_per_second=fp32_peak,
        bf16_flops_per_second=flops / seconds["bf16"] if bf16 else None,
        int8_training_gain=flops / seconds["int8"] / fp32_peak if integers else None,
        memory_bytes_per_second=2.0 * source.nbytes / seconds["copy"],
        memory_bytes=_memory_bytes(device),
        operator_seconds=seconds["operators"] / _OPERATORS,
        uplink_bits_per_second=_LINK,
        downlink_bits_per_second=_LINK,
        ptq_kernel="int8" if integers else "fp",
        qat_kernel="int8" if integers else fused,  # type: ignore[arg-type]  # one of two of its words
    )
    return HostDevice(profile, fp32_peak / linear_peak)


def repeated(device: torch.device, once: Callable[[], object], clock: Callable[[torch.device], Clock] = Clock) -> Work:
    """What `time_in_turns` takes, of something that is done once."""

    def work(repeats: int) -> float:
        started = clock(device)
        for _ in range(repeats):
            once()
        return started.seconds() / repeats

    return work


def _chain(start: Tensor) -> None:
    x = start
    for _ in range(_OPERATORS):
        x = x * x
    torch.autograd.grad(x, start, start.detach())


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
