from collections.abc import Iterator

import pytest
import torch

from fedhq_lightning.quantize.native import lanes
from fedhq_lightning.quantize.native.build import built_library, levels_of_this_processor
from fedhq_lightning.quantize.native.lanes import native_level
from fedhq_lightning.support.seeds import seed_generators


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Tolerances are tested on the same values every time, whichever tests ran before."""
    seed_generators(0)


@pytest.fixture(params=levels_of_this_processor())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level that this processor has, one after the other."""
    best = native_level()
    torch.ops.load_library(str(built_library()))
    torch.ops.fedhq.use_level(request.param)
    yield request.param
    if best is not None:
        torch.ops.fedhq.use_level(best)


@pytest.fixture
def _on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of our own also where a processor has others that are faster."""
    monkeypatch.setattr(lanes, "native_level", lambda: "as the test says")
