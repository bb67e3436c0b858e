"""The lanes on a GPU; where there is none, on one that claims to be (`tests/fake_gpu/`)."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.quantize import LaneOptions, QuantScheme, convert, prepare
from fedhq_lightning.quantize.integer_matmul import integer_matmul
from fedhq_lightning.support.arithmetic import reproducible
from fedhq_lightning.types import Mode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
INT8 = LaneOptions(layer_kernels={mode: {"*": "int8"} for mode in ("ptq", "qat")})


def _int8(rows: int, columns: int, transposed: bool, offset: int = 0) -> Tensor:
    size = rows * columns
    values = torch.randint(-128, 128, (offset + size,), dtype=torch.int8, device="cuda")[offset:]
    return values.view(columns, rows).t() if transposed else values.view(rows, columns)


@pytest.mark.parametrize("layouts", list(itertools.product([False, True], repeat=2)))
def test_products_are_exact_for_every_layout_size_and_start(layouts: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    for rows, inner, columns in itertools.product((1, 16, 17, 31, 33, 64), (1, 15, 16, 100), (1, 8, 17, 64)):
        for offset in (0, 1, 8):
            a, b = _int8(rows, inner, layouts[0], offset), _int8(columns, inner, layouts[1], offset)
            expected = (a.double() @ b.double().t()).int()
            assert torch.equal(integer_matmul(a, b), expected), (rows, inner, columns, offset)


def test_longer_sums_than_int32_holds() -> None:
    a, b = _int8(40, 140_001, False), _int8(9, 140_001, False)
    assert torch.equal(integer_matmul(a, b).double(), a.double() @ b.double().t())


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * 15 * 15, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def _trained(mode: Mode, device: str) -> list[Any]:
    module = prepare(_model().to(device), mode, QuantScheme("w4a8"), INT8)
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    with reproducible(1, torch.device(device)):
        output = module(x)
        output.square().sum().backward()
    return [output.detach(), *(each.grad for each in module.parameters())]


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_a_step_has_the_same_bits_at_every_run(mode: Mode) -> None:
    assert all(map(torch.equal, _trained(mode, "cuda"), _trained(mode, "cuda")))


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_a_step_is_a_cpus(mode: Mode) -> None:
    """To the bit, but for the sums of biases' gradients, which are of floats."""
    for ours, theirs in zip(_trained(mode, "cuda"), _trained(mode, "cpu"), strict=True):
        if theirs.dim() > 1:
            assert torch.equal(ours.cpu(), theirs)
        else:
            torch.testing.assert_close(ours.cpu(), theirs)


def test_a_converted_model_computes_what_it_does_on_a_cpu() -> None:
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        here, there = (convert(_model().to(device), QuantScheme("w4a8"))(x.to(device)) for device in ("cpu", "cuda"))
    assert torch.equal(here, there.cpu())


def test_prepared_and_converted_agree_bit_for_bit() -> None:
    scheme, x = QuantScheme("w4a8"), torch.randn(64, 3, 32, 32, device="cuda")
    prepared, plain = prepare(_model().cuda(), "qat", scheme, INT8).eval(), _model().cuda()
    with torch.no_grad():
        assert torch.equal(prepared(x), convert(plain, scheme)(x))
