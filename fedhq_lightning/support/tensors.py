"""Questions about tensors that torch answers otherwise."""

from torch import Tensor


def same_values(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors hold the same values; unlike `torch.equal` also where both hold some that are no numbers."""
    return left.shape == right.shape and bool(((left == right) | (left != left) & (right != right)).all())
