import itertools

import pytest
import torch

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
