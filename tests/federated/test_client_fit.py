"""What one client leaves in the resident module must not reach the next."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedhq_lightning.errors import RunError

from ..small_federation import SmallModule
from ..trainer.runs import fit, records

pytestmark = pytest.mark.usefixtures("no_report")


class Caches(SmallModule):
    """Keeps a table as long as the longest input it has seen, in one of the ways in which modules do."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.seen: list[int] = []
        self.register_buffer("table", None if way == "none" else torch.zeros(0), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        table: Any = self.table
        if table is None or len(table) < len(inputs):
            longer = torch.zeros(len(inputs))
            if self.way == "re-registered":
                self.register_buffer("table", longer)
            else:
                self.table = longer
        return super().forward(inputs)

    def on_fit_start(self) -> None:
        assert self.table is None if self.way == "none" else len(self.table) == 0  # type: ignore[arg-type]  # a buffer


@pytest.mark.parametrize("way", ["assigned", "re-registered", "none"])
def test_a_buffer_that_a_client_replaced_is_the_templates_for_the_next(way: str) -> None:
    done, state = fit(Caches(way))
    assert "table" not in state
    assert {client.status for client in records(done)[2].clients} == {"ok"}


def test_a_table_that_travels_may_not_grow() -> None:
    """Its clients are left out, each with a reason."""

    class Grows(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(0))

        def forward(self, inputs: Tensor) -> Tensor:
            self.table = torch.zeros(len(inputs))
            return super().forward(inputs)

    with (
        pytest.warns(UserWarning, match=r"table: .* expected|no usable update"),
        pytest.raises(RunError, match=r"the model is untrained and not written; client 0: table: .* expected"),
    ):
        fit(Grows(), max_rounds=1)
