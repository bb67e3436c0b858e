import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedhq_lightning.quantize import integer_matmul as integer_matmul_module
from fedhq_lightning.quantize.integer_matmul import integer_matmul


def _int8(rows: int, columns: int, transposed: bool, generator: torch.Generator) -> torch.Tensor:
    shape = (columns, rows) if transposed else (rows, columns)
    values = torch.randint(-127, 128, shape, generator=generator).to(torch.int8)
    return values.t() if transposed else values


@pytest.mark.parametrize(("a_transposed", "b_transposed"), list(itertools.product([False, True], repeat=2)))
def test_exact_for_every_small_shape_and_layout(a_transposed: bool, b_transposed: bool) -> None:
    """torch._int_mm alone fails here: with one row of a transposed column, and now and then with one inner element."""
    generator = torch.Generator().manual_seed(0)
    sizes = (1, 2, 3, 4, 7, 16, 33)
    for rows, inner, columns in itertools.product(sizes, sizes, sizes):
        a, b = _int8(rows, inner, a_transposed, generator), _int8(columns, inner, b_transposed, generator)
        expected = (a.double() @ b.double().t()).to(torch.int32)
        torch.testing.assert_close(integer_matmul(a, b), expected, atol=0, rtol=0, msg=f"{rows} {inner} {columns}")


def test_no_rows() -> None:
    assert integer_matmul(torch.zeros(0, 5, dtype=torch.int8), torch.zeros(3, 5, dtype=torch.int8)).shape == (0, 3)


@pytest.mark.parametrize("step", [1, 2])
def test_exact_for_views_that_overlap(step: int) -> None:
    """Windows and expanded rows share memory, which torch._int_mm alone misreads."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(-127, 128, (60,), generator=generator).to(torch.int8).unfold(0, 7, step)
    other = _int8(5, 7, False, generator)
    expanded = other[:1].expand(9, 7)
    for a, b in itertools.permutations((windows, expanded, other), 2):
        assert torch.equal(integer_matmul(a, b), (a.double() @ b.double().t()).int())
    tall = _int8(4, len(windows), False, generator)
    assert torch.equal(integer_matmul(windows.t(), tall), (windows.t().double() @ tall.double().t()).int())


@pytest.mark.parametrize("a_value", [-128, -127, 127])
@pytest.mark.parametrize("b_value", [-128, -127, 127])
def test_exact_at_the_ends_of_the_range(a_value: int, b_value: int) -> None:
    for rows, inner, columns in [(1, 64, 32), (32, 64, 32), (40, 1000, 65)]:
        a = torch.full((rows, inner), a_value, dtype=torch.int8)
        b = torch.full((columns, inner), b_value, dtype=torch.int8)
        assert (integer_matmul(a, b) == inner * a_value * b_value).all()


def test_longer_sums_than_int32_holds() -> None:
    a, b = torch.full((2, 140_000), 127, dtype=torch.int8), torch.full((3, 140_000), -128, dtype=torch.int8)
    product = integer_matmul(a, b)
    assert product.dtype == torch.int64
    assert (product == 140_000 * 127 * -128).all()


def test_exact_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_matmul_module, "has_exact_kernel", lambda device: False)
    kernel = torch._int_mm

    def int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert b.numel() == 0 or (b.min() >= -64 and b.max() <= 63), "more than 7 bits may overflow"
        return kernel(a, b)

    monkeypatch.setattr(torch, "_int_mm", int_mm)
    generator = torch.Generator().manual_seed(0)
    for transposed in (False, True):
        a, b = _int8(40, 33, transposed, generator), _int8(9, 33, transposed, generator)
        product = integer_matmul(a, b)
        assert product.dtype == torch.int32
        assert torch.equal(product, (a.long() @ b.long().t()).int())
    assert integer_matmul(a[:0], b).shape == (0, 9)


WITHOUT_VNNI = """
import sys
from pathlib import Path

import torch
from torch import nn

from fedhq_lightning.quantize.conversion import convert
from fedhq_lightning.deploy.export import export_program
from fedhq_lightning.quantize.integer_convolution import has_convolution_kernel
from fedhq_lightning.quantize.integer_matmul import has_exact_kernel, integer_matmul
from fedhq_lightning.quantize.kernel_choice import has_fast_integers
from fedhq_lightning.quantize.lane_options import LaneOptions
from fedhq_lightning.quantize.lanes import prepare
from fedhq_lightning.quantize.scheme import QuantScheme

cpu = torch.device("cpu")
generator = torch.Generator().manual_seed(0)
a = torch.randint(-128, 128, (64, 200), generator=generator).to(torch.int8)
b = torch.randint(-128, 128, (48, 200), generator=generator).to(torch.int8)
exact = (a.long() @ b.long().t()).int()
assert has_exact_kernel(cpu) is torch.equal(torch._int_mm(a, b.t()), exact), "overflows, unnoticed"
assert not has_convolution_kernel(cpu)
assert not has_fast_integers(cpu)
assert torch.equal(integer_matmul(a, b), exact)
scheme = QuantScheme("w8a8", edge_bits=None)
for layer, x in [
    (nn.Linear(200, 40), torch.rand(50, 200, generator=generator) - 0.1),
    (nn.Conv2d(8, 9, 3), torch.rand(4, 8, 9, 9, generator=generator) - 0.1),
]:
    wide = layer(x)
    converted = convert(layer, scheme)(x)
    export_program(convert(layer, scheme), (x,), Path(sys.argv[1]))
    assert torch.equal(torch.export.load(sys.argv[1]).module()(x), converted)
    prepared = prepare(layer, "qat", scheme, LaneOptions("int8"))(x)
    assert torch.equal(prepared, converted)
    assert (prepared - wide).norm() < 0.03 * wide.norm()
"""


@pytest.mark.corner
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 instructions")
def test_exact_on_x86_without_vnni(tmp_path: Path) -> None:
    """There oneDNN multiplies bytes (a + 128) with int8 and adds two products in 16 bits: torch._int_mm overflows.

    oneDNN is told to use no newer instructions than AVX2, which it reads once per process.
    """
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "FEDHQ_KERNELS": "off"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI, str(tmp_path / "layer.pt2")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
