"""Allocators that are callbacks too: the same plans, and a state that waits until the silos are known."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from fedhq_lightning import allocation, callbacks
from fedhq_lightning.allocation import AllocationContext, Allocator
from fedhq_lightning.callbacks import AllocatorCallback
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.types import ClientId, Mode, Plan

NAMES = ["FixedAllocator", "FreeQatAllocator", "HybridAllocator", "LateQatAllocator", "MatchedRandomAllocator"]


def seconds(client_id: ClientId, mode: Mode) -> float:
    return (1.0 + int(client_id)) * {"fp": 1.5, "ptq": 1.0, "qat": 2.0}[mode]


def context(count: int = 12, **given: Any) -> AllocationContext:
    return AllocationContext(
        range(count),
        seed=3,
        client_seconds=seconds,
        divergence=lambda client_id, measure: int(client_id) / count,
        sensitivity=lambda client_id, measure: 0.1,
        cohort=lambda round_number: range(count),
        max_rounds=20,
        **given,
    )


def record(number: int, value: float) -> RoundRecord:
    nothing: dict[str, Any] = {"metrics": {}, "mode_counts": {}, "clients": ()}
    names = ("wall", "fit_wall", "allocator", "virtual", "total_wall", "total_virtual")
    times = {f"{name}_seconds": float(number) for name in names}
    counts = {"uplink_bytes": 0, "downlink_bytes": 0, "quarantined": 0, "late": 0}
    return RoundRecord(round=number, metric_fp=value, metric_quantized=value, **nothing, **times, **counts)


def in_trainer(allocator: Any, stage: str = "fit") -> Any:
    """As `lightning.Trainer` begins with it."""
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[callbacks.FederatedAveraging(scheme="w4a8"), allocator]
    )
    allocator.setup(trainer, pl.LightningModule(), stage)
    return allocator


class TestEvery:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_a_callback_and_the_allocator(self, name: str) -> None:
        kind, plain = getattr(callbacks, name), getattr(allocation, name)
        assert issubclass(kind, pl.Callback)
        assert issubclass(kind, plain)
        assert issubclass(kind, Allocator)
        assert kind.propose is plain.propose
        assert kind.observe is plain.observe

    @pytest.mark.parametrize("name", ["FixedAllocator", "FreeQatAllocator", "HybridAllocator"])
    def test_plans_alike_outside_a_trainer(self, name: str, tmp_path: Path) -> None:
        kind, plain = getattr(callbacks, name)(), getattr(allocation, name)()
        for allocator in (kind, plain):
            allocator.begin(context())
        for number in range(1, 9):
            plans = [allocator.propose(number, range(12)) for allocator in (kind, plain)]
            assert plans[0] == plans[1]
            for allocator in (kind, plain):
                allocator.observe(record(number, number / 10))
        assert json.dumps(kind.state_dict()) == json.dumps(plain.state_dict())

    def test_of_ones_own(self) -> None:
        class Mine(Allocator):
            last = 0

            def propose(self, round_number: int, cohort: Any) -> Plan:
                self.last = round_number
                return Plan(dict.fromkeys(cohort, "qat"))

            def state_dict(self) -> dict[str, Any]:
                return {"last": self.last}

            def load_state_dict(self, state: Any) -> None:
                self.last = state["last"]

        class MineInTrainer(AllocatorCallback, Mine):
            pass

        allocator = in_trainer(MineInTrainer())
        allocator.load_state_dict({"last": 7})
        assert allocator.state_dict() == {"last": 7}
        assert allocator.last == 0
        assert allocator.is_resumed
        allocator.begin(context())
        assert allocator.last == 7

    def test_an_evaluation_leaves_it_as_it_is(self) -> None:
        """A checkpoint saved after `trainer.test` goes on as one saved before it."""
        allocator = in_trainer(callbacks.HybridAllocator())
        assert allocator.state_dict() == {}
        allocator.begin(context())
        allocator.propose(1, range(12))
        allocator.observe(record(1, 0.5))
        before = json.dumps(allocator.state_dict())
        allocator.setup(pl.Trainer(accelerator="cpu", logger=False), pl.LightningModule(), "test")
        allocator.load_state_dict({"another": "run's"})
        assert json.dumps(allocator.state_dict()) == before
        # As a FederatedTrainer would go on with it.
        allocator.begin(context())
        assert json.dumps(allocator.state_dict()) != before
        allocator.load_state_dict(json.loads(before))
        assert json.dumps(allocator.state_dict()) == before
        unused = callbacks.HybridAllocator()
        unused.setup(pl.Trainer(accelerator="cpu", logger=False), pl.LightningModule(), "validate")
        unused.load_state_dict(json.loads(before))
        assert unused.state_dict() == {}


class TestHybrid:
    def test_a_restored_state_waits_until_begin(self) -> None:
        """The Trainer restores callbacks before the silos are known; the plans are those of an unbroken run."""
        unbroken = in_trainer(callbacks.HybridAllocator())
        unbroken.begin(context())
        for number in range(1, 6):
            unbroken.propose(number, range(12))
            unbroken.observe(record(number, number / 10))
        resumed = in_trainer(callbacks.HybridAllocator())
        resumed.load_state_dict(unbroken.state_dict())
        assert json.dumps(resumed.state_dict()) == json.dumps(unbroken.state_dict())
        resumed.begin(context(resumes=True))
        for number in range(6, 12):
            assert resumed.propose(number, range(12)) == unbroken.propose(number, range(12))
            for allocator in (resumed, unbroken):
                allocator.observe(record(number, number / 10))
        assert json.dumps(resumed.state_dict()) == json.dumps(unbroken.state_dict())

    @pytest.mark.parametrize(("count", "is_fine"), [(7, False), (8, True)])
    def test_is_coarse_among_fewer_than_8_silos(self, count: int, is_fine: bool, tmp_path: Path) -> None:
        allocator = in_trainer(callbacks.HybridAllocator(qat_from=0.0, slowdown=0.5))
        allocator.begin(context(count))
        boundaries = set()
        for number in range(1, 16):
            plan = allocator.propose(number, range(count))
            boundaries.add((plan.logged["slack"], plan.logged["share"]))
            allocator.observe(record(number, number / 10))
        assert (len(boundaries) > 1) == is_fine
        assert ("stays coarse" in allocator.explanation) == (not is_fine)
        allocator.write(tmp_path)
        assert (tmp_path / "study.log").exists() == is_fine
        allocator.teardown(None, None, "fit")
        assert allocator.fine

    def test_silos_take_all_their_steps(self) -> None:
        allocator = in_trainer(callbacks.HybridAllocator(qat_from=0.0, boundary={"slack": -0.3, "share": 0.0}))
        for _ in range(2):
            allocator.begin(context())
            for number in range(1, 16):
                assert not allocator.propose(number, range(12)).work
                allocator.observe(record(number, number / 10))
        allocator.teardown(None, None, "fit")
        assert allocator.least_work == 0.5
        allocator.begin(context())
        assert allocator.propose(1, range(12)).work

    def test_a_federated_trainer_refines_with_few_clients_too(self) -> None:
        allocator = callbacks.HybridAllocator()
        allocator.begin(context(4))
        assert allocator.fine
        assert "stays coarse" not in allocator.explanation
