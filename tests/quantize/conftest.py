import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Tolerances are tested on the same values every time, whichever tests ran before."""
    torch.manual_seed(0)
