from collections.abc import Iterator

import pytest
import torch

from fedhq_lightning.quantize import kernel_choice
from fedhq_lightning.quantize.kernel_choice import (
    has_fast_integers,
    integers_pay_in_convolution,
    integers_pay_in_linear,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    has_fast_integers.cache_clear()
    yield
    has_fast_integers.cache_clear()


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "has_fast_integers", lambda device: True)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize(
    ("x", "weight", "pays"),
    [
        ((256, 1024), (1024, 1024), True),
        ((32, 512), (512, 512), True),
        ((31, 4096), (4096, 4096), False),  # too few rows
        ((1, 4096), (4096, 4096), False),
        ((4, 8, 512), (512, 512), True),  # rows of every leading dimension count
        ((4096, 63), (1024, 63), False),  # too narrow, on either side
        ((4096, 1024), (63, 1024), False),
        ((256, 784), (10, 784), False),
        ((2048, 64), (64, 64), True),  # 2^23 products
        ((2047, 64), (64, 64), False),
        ((0, 64), (64, 64), False),
    ],
)
def test_linear_layers_by_shape(x: tuple[int, ...], weight: tuple[int, ...], pays: bool) -> None:
    assert integers_pay_in_linear(meta(*x), meta(*weight)) is pays


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize(
    ("x", "weight", "positions", "pays"),
    [
        ((32, 64, 32, 32), (64, 64, 3, 3), 1024, True),
        ((32, 64, 32, 32), (64, 64, 3, 3), 16, False),  # a large stride leaves few positions
        ((32, 3, 32, 32), (64, 3, 3, 3), 1024, False),  # the first layer of a network
        ((32, 31, 32, 32), (64, 31, 3, 3), 1024, False),
        ((32, 64, 32, 32), (31, 64, 3, 3), 1024, False),
        ((1, 64, 32, 32), (64, 64, 3, 3), 1024, False),
        ((8, 64, 128), (128, 64, 4), 2048, True),
    ],
)
def test_convolutions_by_shape(x: tuple[int, ...], weight: tuple[int, ...], positions: int, pays: bool) -> None:
    assert integers_pay_in_convolution(meta(*x), meta(*weight), positions) is pays


@pytest.mark.usefixtures("torch_kernels")
def test_a_device_without_fast_integers_computes_in_floating_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True})
    x, weight = torch.empty(256, 1024), torch.empty(1024, 1024)
    assert not has_fast_integers(CPU)
    assert not integers_pay_in_linear(x, weight)
    assert not integers_pay_in_convolution(torch.empty(8, 64, 32, 32), torch.empty(64, 64, 3, 3), 1024)
    assert not has_fast_integers(torch.device("meta"))


@pytest.mark.parametrize("name", ["avx512_vnni", "avx_vnni", "amx_int8"])
@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize("has_compiler", [True, False])
def test_instructions_exact_kernels_and_a_compiler_are_needed(
    name: str, is_exact: bool, has_compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    monkeypatch.setattr(kernel_choice, "has_exact_kernel", lambda device: is_exact)
    monkeypatch.setattr(kernel_choice, "can_compile", lambda: has_compiler)
    assert has_fast_integers(CPU) is (is_exact and has_compiler)


@pytest.mark.parametrize(
    ("capability", "hip", "has_them"),
    [((7, 5), None, True), ((9, 0), None, True), ((7, 0), None, False), ((9, 0), "6.4", False)],
)
def test_gpus_from_turing_on_have_them(
    capability: tuple[int, int], hip: str | None, has_them: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert has_fast_integers(torch.device("cuda")) is has_them
