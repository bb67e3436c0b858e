import pytest

from fedhq_lightning.support.seeds import seed_generators


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Tolerances are tested on the same values every time, whichever tests ran before."""
    seed_generators(0)
