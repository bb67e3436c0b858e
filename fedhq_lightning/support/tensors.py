"""What torch answers otherwise about tensors, or later."""

from torch import Tensor


def same_values(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same values; unlike `torch.equal` also where both hold some that are no numbers."""
    return left.shape == right.shape and bool(((left == right) | (left != left) & (right != right)).all())


def rows_of(tensor: Tensor, index: Tensor) -> Tensor:
    """`tensor[index]`, in a quarter of the time where that can be.

    Args:
        tensor: (num_rows, ...), any dtype.
        index: (num_wanted,) int64 row numbers; negative ones count from the end.

    Raises:
        IndexError: There is no such row.
    """
    if tensor.is_contiguous():
        try:
            return tensor.index_select(0, index)
        except (IndexError, RuntimeError):
            pass  # a negative number, or one of which indexing says more clearly what is wrong
    return tensor[index]
