"""Clients that take no optimizer step in a round: they send nothing and count nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator, HybridAllocator
from fedhq_lightning.errors import RunError
from fedhq_lightning.federated.algorithms import FedProx
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import RoundRecord, read_rounds
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import ClientId

from ..small_federation import SmallData, SmallModule, same_bits, trainer

WARNING = "took no step"


class Drops(SmallData):
    """Loaders without a last batch that is not full: 8 examples make one."""

    def train_dataloader(self, client_id: ClientId) -> Any:
        return DataLoader(self.dataset(client_id), 8, shuffle=True, drop_last=True)


class Skips(SmallModule):
    """Trains on nobody's batches but those of clients with more than so many."""

    fewest = 2

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.trainer.num_training_batches < self.fewest else None


class NoLoss(SmallModule):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss if self.trainer.num_training_batches >= 2 else None


def fitted(module: Any, data: SmallData, tmp_path: Path, **settings: Any) -> FederatedTrainer:
    done = trainer(default_root_dir=tmp_path, **{"max_rounds": 2, **settings})
    done.writes_model = False
    done.fit(module, data)
    return done


def rounds_of(done: FederatedTrainer) -> list[RoundRecord]:
    return RunDirectory(done.run_dir).read_rounds()[1:]


class Only(SmallData):
    """The clients of other data that hold so many examples or more."""

    def __init__(self, data: SmallData, fewest: int) -> None:
        super().__init__({client: size for client, size in data.sizes.items() if size >= fewest})
        self.train_dataloader = data.train_dataloader  # type: ignore[method-assign]


class Picked(SmallData):
    """One client of other data."""

    def __init__(self, data: SmallData, client_id: ClientId) -> None:
        super().__init__({client_id: data.sizes[client_id]})
        self.train_dataloader = data.train_dataloader  # type: ignore[method-assign]


SIZES = {"a": 20, "b": 5, "c": 16, "d": 3}


@pytest.mark.parametrize("settings", [{}, {"scheme": "w4a8", "uplink": "delta"}, {"ema_decay": 0.5}], ids=str)
def test_a_client_without_a_batch_counts_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    """The model is that of a federation without it, BatchNorm's statistics too; what it costs is its download."""

    class Normed(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(1, nn.BatchNorm1d(16))

    module, alone = Normed(), Normed()
    with pytest.warns(
        UserWarning, match=r"round 1: 2 of 4 clients took no step.*: b, d \(2: its training loader"
    ) as said:
        done = fitted(module, Drops(SIZES), tmp_path, **settings)
    assert sum(WARNING in str(each.message) for each in said) == 1
    fitted(alone, Only(Drops(SIZES), 8), tmp_path, **settings)
    assert same_bits(module.state_dict(), alone.state_dict())
    for record in rounds_of(done):
        assert [each.status for each in record.clients] == ["ok", "idle", "ok", "idle"]
        assert (record.idle, record.late, record.quarantined) == (2, 0, 0)
        for each in (record.clients[1], record.clients[3]):
            assert (each.num_steps, each.metrics, each.uplink_bytes, each.update_divergence) == (0, {}, 0, None)
            assert each.virtual_seconds == each.download_seconds > 0
            assert each.downlink_bytes == record.clients[0].downlink_bytes
            assert "drop_last" in each.reason
        kept = [record.clients[0], record.clients[2]]
        loss = sum(each.metrics["train_loss"] * each.num_examples for each in kept) / 36
        assert record.metrics["train/train_loss"] == pytest.approx(loss)
        sent = record.uplink_bytes - record.statistics_uplink_bytes
        assert sent == sum(each.uplink_bytes for each in kept)
    assert json.loads((done.run_dir / "summary.json").read_text())["idle"] == 4


@pytest.mark.parametrize("module", [Skips, NoLoss])
def test_a_client_whose_batches_are_all_skipped_counts_nothing(module: type[SmallModule], tmp_path: Path) -> None:
    """`on_train_batch_start` returns -1, or `training_step` None, on the clients of one batch."""
    skipping, alone = module(), module()
    with pytest.warns(UserWarning, match=r"1 of 3 clients took no step.*1: no batch was trained on"):
        done = fitted(skipping, SmallData({"a": 20, "b": 8, "c": 16}), tmp_path, local_steps=4)
    fitted(alone, Only(SmallData({"a": 20, "b": 8, "c": 16}), 9), tmp_path, local_steps=4)
    assert same_bits(skipping.state_dict(), alone.state_dict())
    idle = rounds_of(done)[0].clients[1]
    assert (idle.status, idle.compute_seconds, idle.upload_seconds, idle.uplink_bytes) == ("idle", 0, 0, 0)


def test_nobody_takes_a_step(tmp_path: Path) -> None:
    """A cohort of idle clients alone leaves the model as it is."""
    module = Skips()
    Skips.fewest, before = 9, {name: value.clone() for name, value in module.state_dict().items()}
    try:
        with (
            pytest.warns(UserWarning, match="round 1: 4 of 4 clients took no step"),
            pytest.warns(UserWarning, match="round 1: no usable update arrived; the global model stays as it is"),
            pytest.raises(RunError, match=r"none of 1 rounds had a usable .* client 0: no batch was trained on"),
        ):
            fitted(module, SmallData(), tmp_path, max_rounds=1, aggregator=FedProx(0.1), ema_decay=0.5, scheme="w4a8")
    finally:
        Skips.fewest = 2
    (run,) = tmp_path.glob("*/*")
    state = load_checkpoint(run / "checkpoints" / "round-000001.ckpt")["state"]["averaged_state"]
    assert same_bits(state, before)
    assert not (run / "model").exists()
    assert [record.uplink_bytes for record in read_rounds(run / "rounds.jsonl")] == [0, 0]


def test_a_deadline_finds_late_who_would_have_trained_only(tmp_path: Path) -> None:
    """Who has no batch only downloads: it is idle, and the round does not last for an upload that never comes."""
    with pytest.warns(UserWarning, match=WARNING):
        free = fitted(SmallModule(), Drops({"a": 16, "b": 5, "c": 800}), tmp_path, max_rounds=1)
    clients = rounds_of(free)[0].clients
    deadline = (clients[0].virtual_seconds + clients[2].virtual_seconds) / 2
    with pytest.warns(UserWarning, match=WARNING):
        done = fitted(
            SmallModule(), Drops({"a": 16, "b": 5, "c": 800}), tmp_path, max_rounds=1, round_deadline=deadline
        )
    record = rounds_of(done)[0]
    assert [each.status for each in record.clients] == ["ok", "idle", "late"]
    assert record.virtual_seconds == deadline
    with pytest.warns(UserWarning, match=WARNING):
        done = fitted(
            SmallModule(),
            Drops({"a": 16, "b": 5}),
            tmp_path,
            max_rounds=1,
            round_deadline=clients[0].virtual_seconds,
        )
    assert rounds_of(done)[0].virtual_seconds == clients[0].virtual_seconds


def test_a_last_batch_that_is_dropped_takes_nothing_off_the_weight(tmp_path: Path) -> None:
    """FedAvg weighs by the examples that a client holds, 20 and 16 here, not by the 16 of each that it saw."""
    both, ends = SmallModule(), []
    fitted(both, Drops({"a": 20, "b": 16}), tmp_path, max_rounds=1)
    for client in ("a", "b"):
        ends.append(SmallModule())
        fitted(ends[-1], Picked(Drops({"a": 20, "b": 16}), client), tmp_path, max_rounds=1)
    for name, value in both.named_parameters():
        one, other = (end.get_parameter(name) for end in ends)
        assert value.detach().sub(one * 20 / 36 + other * 16 / 36).abs().max() < 1e-6


def test_allocators_learn_no_times_of_idle_clients(tmp_path: Path) -> None:
    """A skipped fit takes no time, which says nothing of the device."""
    allocator = HybridAllocator()
    with pytest.warns(UserWarning, match=WARNING):
        fitted(Skips(), SmallData({"a": 20, "b": 8, "c": 16}), tmp_path, scheme="w4a8", callbacks=allocator)
    assert allocator._knowledge is not None
    assert set(allocator._knowledge.ratios.values()) == {1.0}


def test_who_has_no_batch_is_not_planned_into_qat(tmp_path: Path) -> None:
    allocator = HybridAllocator(boundary={"slack": 0.0, "share": 1.0}, qat_from=0.0)
    with pytest.warns(UserWarning, match=WARNING):
        done = fitted(SmallModule(), Drops(SIZES), tmp_path, scheme="w4a8", callbacks=allocator)
    assert [each.mode for each in rounds_of(done)[0].clients] == ["qat", "ptq", "qat", "ptq"]
    shown = json.loads((done.run_dir / "allocation.json").read_text())["clients"]
    assert [each["client_id"] for each in shown] == ["a", "c"]


def test_who_drops_no_last_batch_of_its_own_is_timed_as_it_trains(tmp_path: Path) -> None:
    """Loaders that drop a last batch only where there is another one, as many write them."""

    class DropsIfLarge(SmallData):
        def train_dataloader(self, client_id: ClientId) -> Any:
            dataset = self.dataset(client_id)
            return DataLoader(dataset, 8, drop_last=len(dataset) > 8)

    done = fitted(SmallModule(), DropsIfLarge({"a": 20, "b": 5}), tmp_path, max_rounds=1)
    small = rounds_of(done)[0].clients[1]
    assert (small.status, small.num_steps) == ("ok", 1)
    assert min(small.compute_seconds, small.upload_seconds) > 0


def test_idle_clients_measure_no_sensitivity_that_could_be_missed(tmp_path: Path) -> None:
    allocator = HybridAllocator(sensitivity="sqnr")
    with pytest.warns(UserWarning, match=WARNING) as said:
        done = fitted(SmallModule(), Drops(SIZES), tmp_path, scheme="w4a8", callbacks=allocator)
    assert not any("sensitivity" in str(each.message) for each in said)
    clients = rounds_of(done)[0].clients
    assert [each.analysis_seconds > 0 for each in clients] == [True, False, True, False]


def test_the_warning_is_said_once_a_run(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=WARNING) as said:
        fitted(SmallModule(), Drops(SIZES), tmp_path, max_rounds=3, scheme="w4a8", callbacks=FixedAllocator("ptq"))
    assert sum(WARNING in str(each.message) for each in said) == 1
