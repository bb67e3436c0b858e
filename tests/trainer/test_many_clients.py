"""A billion registered clients: a run asks and keeps no more of them than of a thousand times fewer."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator, HybridAllocator
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.types import ClientId

from ..small_federation import NUM_CLASSES, SmallData, SmallModule, examples, same_bits, trainer
from .runs import Recorder, checkpoint, fit, records

MILLION, BILLION = 10**6, 10**9
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class Lazy(SmallData):
    """Clients that are made when they are asked for; every third holds nothing. Counts what it is asked.

    Iterating over their range would take longer than any test may.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.asked = Counter[str]()

    @property
    def client_ids(self) -> range:
        return range(self.count)

    def num_examples(self, client_id: ClientId) -> int:
        self.asked["sizes"] += 1
        return 0 if int(client_id) % 3 == 0 else 10 + int(client_id) % 20

    def train_dataloader(self, client_id: ClientId) -> DataLoader[Any]:
        self.asked["loaders"] += 1
        made = examples(max(1, self.num_examples(client_id)), int(client_id))
        self.asked["sizes"] -= 1
        return DataLoader(made, 8, shuffle=True)

    def label_counts(self, client_id: ClientId) -> Tensor:
        self.asked["labels"] += 1
        return torch.tensor([1 + int(client_id) % 7, 5, 1 + int(client_id) % 2][:NUM_CLASSES])


ALLOCATORS = {
    "fp": lambda: [],
    "share": lambda: [FixedAllocator(0.4)],
    "most-divergent": lambda: [FixedAllocator(0.4, by="divergence")],
    "hybrid": lambda: [HybridAllocator()],
}


def settings(name: str, *more: RoundCallback) -> dict[str, Any]:
    callbacks: list[Any] = [*ALLOCATORS[name](), *more]
    scheme = None if name == "fp" else "w4a8"
    return {"clients_per_round": 6, "fleet": "mixed", "scheme": scheme, "max_rounds": 3, "callbacks": callbacks}


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:.* clients that were looked at hold no examples")
class TestABillion:
    @pytest.mark.parametrize("name", list(ALLOCATORS))
    def test_costs_what_a_thousandth_does(self, name: str) -> None:
        runs = []
        for count in (MILLION, BILLION):
            data = Lazy(count)
            there, _ = fit(data=data, **settings(name))
            runs.append((data, there))
            assert data.asked["sizes"] < 5000
            assert data.asked["labels"] < 3000
            assert data.asked["loaders"] < 300
            assert [len(each.clients) for each in records(there)] == [0, 6, 6, 6]
            assert all(
                client.client_id % 3 and client.status == "ok" for each in records(there) for client in each.clients
            )
        (few, less), (many, more) = runs
        for what, count in few.asked.items():
            assert many.asked[what] == pytest.approx(count, rel=0.1, abs=30), what
        # The model, and the ids and figures of eighteen clients.
        assert len(json.dumps(_plain(checkpoint(more)))) < 1.1 * len(json.dumps(_plain(checkpoint(less))))

    def test_goes_on_bitwise_after_a_kill(self) -> None:
        def interrupt(there: Any, record: Any) -> None:
            if record.round == 2:
                raise KeyboardInterrupt

        _, whole = fit(data=Lazy(BILLION), **settings("hybrid", Recorder()))
        broken = trainer(**settings("hybrid", Recorder(interrupt)))
        with pytest.raises(KeyboardInterrupt):
            broken.fit(SmallModule(), Lazy(BILLION))
        _, resumed = fit(data=Lazy(BILLION), ckpt_path=broken.run_dir, **settings("hybrid", Recorder()))
        assert same_bits(whole, resumed)


def _plain(value: Any) -> Any:
    """Tensors as their sizes."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return list(value.shape) if isinstance(value, Tensor) else str(value)


@pytest.mark.slow
@pytest.mark.parametrize("allocator", ["none", "hybrid"])
def test_memory_and_begin(allocator: str) -> None:
    """In processes of their own: a million clients take 1.05 times the memory of a thousand at most, and begin soon."""

    def measured(registered: int) -> dict[str, float]:
        case = json.dumps({"registered": registered, "cohort": 10, "allocator": allocator, "rounds": 2})
        command = [sys.executable, str(BENCHMARKS / "many_clients.py"), "--case", case]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
        found: dict[str, float] = json.loads(printed.splitlines()[-1])
        return found

    few, many = measured(1000), measured(10**6)
    assert many["peak_mib"] <= 1.05 * few["peak_mib"]
    assert many["first_after"] < 10
    assert many["checkpoint_kib"] <= 1.05 * few["checkpoint_kib"]
