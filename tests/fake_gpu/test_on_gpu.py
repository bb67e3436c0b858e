"""What GPUs refuse, which the one that is none must refuse too."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_tensors_of_both_devices() -> None:
    here, there = torch.ones(3, 3), torch.ones(3, 3, device="cuda")
    for operation in (torch.add, torch.matmul, torch.minimum, torch.nn.functional.linear):
        for pair in ((here, there), (there, here)):
            with pytest.raises(RuntimeError, match=r"(?i)device|on cpu"):
                operation(*pair)
    with pytest.raises(RuntimeError, match=r"(?i)device|on cpu"):
        torch.cat([here, there])


def test_scalars_and_copies_may_come_from_the_cpu() -> None:
    there = torch.ones(3, device="cuda")
    assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
    assert there.copy_(torch.arange(3.0)).cpu().tolist() == [0, 1, 2]
    assert there[torch.tensor([2, 0])].tolist() == [2, 0]
    assert not (there * 2).is_cpu


def test_arrays() -> None:
    with pytest.raises(TypeError, match="cuda"):
        torch.ones(3, device="cuda").numpy()


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 12, 16), (17, 16, 12)])
def test_products_of_int8(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    a, b = (torch.ones(size, dtype=torch.int8, device="cuda") for size in ((rows, inner), (inner, columns)))
    with pytest.raises(RuntimeError, match=r"_int_mm|self\.size|mat2"):
        torch._int_mm(a, b)
