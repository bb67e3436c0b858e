"""What no round changes goes down to a client once, with the first round that it takes part in."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import rounds
from fedhq_lightning.federated.algorithms import FedAvg, FedOpt, FedProx
from fedhq_lightning.federated.algorithms.aggregator import Gathered
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import ClientId, StateDict

from ..beside_lightning import lightning_fit
from ..small_federation import NUM_CLASSES, NUM_FEATURES, SmallData, SmallModule, same_bits, trainer

SIZES = (20, 13, 8, 27, 10, 16)


class Adapted(SmallModule):
    """A small adapter on a large frozen base, as LoRA has it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.base = nn.Linear(NUM_FEATURES, 200)
            self.net = nn.Sequential(nn.Linear(200, 4), nn.BatchNorm1d(4), nn.Linear(4, NUM_CLASSES))
        self.base.requires_grad_(False)

    def forward(self, inputs: Any) -> Any:
        return self.net(self.base(inputs))


class Interrupts(RoundCallback):
    """Ends the run after a round; which, is no setting of the run."""

    after = 0

    def on_round_saved(self, trainer: FederatedTrainer, record: RoundRecord) -> None:
        if record.round == self.after > 0:
            raise KeyboardInterrupt


def quiet(tmp_path: Path, **settings: Any) -> FederatedTrainer:
    there = trainer(default_root_dir=tmp_path, **{"max_rounds": 4, "clients_per_round": 2} | settings)
    there.writes_model = False
    return there


def fitted(tmp_path: Path, module: SmallModule | None = None, data: Any = None, **settings: Any) -> FederatedTrainer:
    there = quiet(tmp_path, **settings)
    there.fit(module or Adapted(), data or SmallData(SIZES))
    return there


def clients_of(done: FederatedTrainer) -> list[ClientRecord]:
    return [client for record in RunDirectory(done.run_dir).stream_rounds() for client in record.clients]


def by_turn(clients: list[ClientRecord]) -> tuple[list[ClientRecord], list[ClientRecord]]:
    """Those that take part for the first time, and the others."""
    seen, first, again = set[ClientId](), list[ClientRecord](), list[ClientRecord]()
    for each in clients:
        (again if each.client_id in seen else first).append(each)
        seen.add(each.client_id)
    return first, again


@pytest.mark.parametrize("settings", [{}, {"scheme": "w4a8", "downlink": "scheme", "uplink": "delta"}], ids=str)
def test_goes_down_once_and_takes_its_time_once(settings: dict[str, Any], tmp_path: Path) -> None:
    done = fitted(tmp_path, max_rounds=5, **settings)
    first, again = by_turn(clients_of(done))
    assert (len(first), len(again)) == (5, 5)
    once, often = {each.downlink_bytes for each in first}, {each.downlink_bytes for each in again}
    assert len(once) == len(often) == 1
    base = sum(value.numel() for value in Adapted().base.parameters())
    fixed = once.pop() - min(often)
    assert fixed > (base if settings else 4 * base)
    # What comes up is of the size of what goes down then, but for its grid.
    assert again[0].downlink_bytes < 1.2 * again[0].uplink_bytes or settings
    bits_per_second = 8 * first[0].downlink_bytes / first[0].download_seconds
    for each in (*first, *again):
        assert each.download_seconds == pytest.approx(8 * each.downlink_bytes / bits_per_second)
    for record in RunDirectory(done.run_dir).read_rounds()[1:]:
        trained = record.virtual_seconds - record.statistics_seconds
        assert trained == pytest.approx(max(each.virtual_seconds for each in record.clients))
        sent = record.downlink_bytes - record.statistics_downlink_bytes
        assert sent == sum(each.downlink_bytes for each in record.clients)


def test_changes_no_bit_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen weights on the server's grid, a proximal term, an average of models: as if all went down every time."""
    settings: dict[str, Any] = {
        "scheme": "w4a8",
        "downlink": "scheme",
        "aggregator": FedProx(0.1),
        "ema_decay": 0.5,
        "callbacks": FixedAllocator(0.5),
    }
    one, other = Adapted(), Adapted()
    fitted(tmp_path, one, **settings)
    monkeypatch.setattr(
        rounds.RoundLoop, "_newcomers", lambda self, cohort: frozenset(cohort)
    )  # everybody receives everything in every round
    fitted(tmp_path, other, **settings)
    assert same_bits(one.state_dict(), other.state_dict())
    assert same_bits(one.base.state_dict(), Adapted().base.state_dict())


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_counts_the_same_bytes(after: int, tmp_path: Path) -> None:
    """Also with a module whose base the server's takes the place of."""
    unbroken = fitted(tmp_path)
    interrupts = Interrupts()
    interrupts.after = after
    broken = quiet(tmp_path, callbacks=interrupts)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(Adapted(), SmallData(SIZES))
    there, module = quiet(tmp_path, callbacks=Interrupts()), Adapted()
    with torch.no_grad():
        module.base.weight.zero_()
    there.fit(module, SmallData(SIZES), broken.run_dir)
    for mine, other in zip(clients_of(there), clients_of(unbroken), strict=True):
        assert (mine.client_id, mine.downlink_bytes, mine.virtual_seconds, mine.metrics) == (
            other.client_id,
            other.downlink_bytes,
            other.virtual_seconds,
            other.metrics,
        )
    assert same_bits(module.base.state_dict(), Adapted().base.state_dict())


def test_it_is_the_same_whoever_trains_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process trains a share of the cohort, and knows of all of it who is new."""
    alone = clients_of(fitted(tmp_path))
    share = rounds.share_of
    monkeypatch.setattr(rounds, "share_of", lambda *given: share(*given)[:1])
    for each in clients_of(fitted(tmp_path)):
        (same,) = (other for other in alone if (other.round, other.client_id) == (each.round, each.client_id))
        assert (each.downlink_bytes, each.download_seconds) == (same.downlink_bytes, same.download_seconds)


def test_who_is_late_or_idle_has_it_from_then_on(tmp_path: Path) -> None:
    class Drops(SmallData):
        def train_dataloader(self, client_id: ClientId) -> Any:
            return DataLoader(self.dataset(client_id), 8, drop_last=True)

    sizes = {"quick": 16, "idle": 5, "slow": 800}
    with pytest.warns(UserWarning, match="1 of 3 clients took no step"):
        free = clients_of(fitted(tmp_path, data=Drops(sizes), max_rounds=2, clients_per_round=None))
    # The first time it is the download that makes the quick one late.
    between = (free[0].virtual_seconds + free[3].virtual_seconds) / 2
    with (
        pytest.warns(UserWarning, match="1 of 3 clients took no step"),
        pytest.warns(UserWarning, match="round 1: no usable update"),
        pytest.warns(UserWarning, match="every client will be late the first time that it takes part"),
    ):
        done = fitted(tmp_path, data=Drops(sizes), max_rounds=2, clients_per_round=None, round_deadline=between)
    clients = clients_of(done)
    assert [each.status for each in clients] == ["late", "idle", "late", "ok", "idle", "late"]
    assert len({each.downlink_bytes for each in clients[:3]}) == len({each.downlink_bytes for each in clients[3:]}) == 1
    assert clients[0].downlink_bytes > 3 * clients[3].downlink_bytes
    assert clients[1].virtual_seconds > clients[4].virtual_seconds == clients[4].download_seconds


def test_without_a_fixed_part_everybody_receives_the_same_and_nothing_is_kept(tmp_path: Path) -> None:
    done = fitted(tmp_path, SmallModule())
    assert len({each.downlink_bytes for each in clients_of(done)}) == 1
    saved = torch.load(RunDirectory.of_checkpoint(done.run_dir)[1], weights_only=True)
    assert saved["state"]["reached"].numel() == 0


def test_an_aggregator_that_changes_it_is_refused(tmp_path: Path) -> None:
    class Decays(FedAvg):
        def step(self, current: StateDict, gathered: Gathered) -> StateDict:
            following = super().step(current, gathered)
            return {name: value * 0.9 if value.is_floating_point() else value for name, value in following.items()}

    with pytest.raises(ConfigurationError, match=r"Decays\.step changed base\.\w+, which no client sends"):
        fitted(tmp_path, aggregator=Decays())


class Teaches(SmallModule):
    """A teacher without gradients, the moving average of the student, as in BYOL and mean teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def follow(self) -> None:
        with torch.no_grad():
            for mine, other in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                mine.lerp_(other, 0.1)


class TeachesAtOnce(Teaches):
    def on_train_batch_end(self, *_: Any) -> None:
        self.follow()


class TeachesBefore(Teaches):
    """Where Lightning's documentation has it: nothing is changed by the first step."""

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.follow()


@pytest.mark.parametrize("module", [TeachesAtOnce, TeachesBefore])
def test_what_a_hook_changes_is_no_fixed_part(module: type[Teaches], tmp_path: Path) -> None:
    """One client's round is Lightning's fit, teacher too; and it is averaged, not stepped like what is trained."""

    class InOrder(SmallData):
        def train_dataloader(self, client_id: ClientId) -> Any:
            return DataLoader(self.dataset(client_id), 8)

    data, mine, reference = InOrder((20,)), module(), module()
    done = fitted(tmp_path, mine, data, clients_per_round=None, max_rounds=1)
    lightning_fit(reference, data.train_dataloader(0), max_epochs=1)
    assert same_bits(mine.state_dict(), reference.state_dict())
    assert not torch.equal(mine.teacher[0].weight, module().teacher[0].weight)
    assert len({each.downlink_bytes for each in clients_of(done)}) == 1
    stepped = fitted(
        tmp_path,
        mine := module(),
        data,
        clients_per_round=None,
        max_rounds=1,
        aggregator=FedOpt(partial(torch.optim.SGD, lr=0.5)),
    )
    assert same_bits(mine.teacher.state_dict(), reference.teacher.state_dict())
    assert not same_bits(mine.net.state_dict(), reference.net.state_dict())
    assert stepped.summary["rounds"] == 1


def test_what_thaws_within_a_fit_is_refused(tmp_path: Path) -> None:
    class Thaws(Adapted):
        def on_train_epoch_start(self) -> None:
            self.base.requires_grad_(self.trainer.current_epoch > 0)

    fitted(tmp_path, Thaws(), max_rounds=1)
    with pytest.raises(ConfigurationError, match=r"base\.weight, base\.bias: frozen when a local fit began"):
        fitted(tmp_path, Thaws(), max_rounds=1, local_epochs=2)


def test_what_a_client_freezes_is_thawed_for_the_next(tmp_path: Path) -> None:
    """All share one resident module: who trains after whom must decide nothing."""

    class Freezes(SmallModule):
        def on_train_batch_end(self, *_: Any) -> None:
            self.net[0].requires_grad_(False)

        def on_fit_start(self) -> None:
            assert self.net[0].weight.requires_grad

    fitted(tmp_path, Freezes(), max_rounds=2)
