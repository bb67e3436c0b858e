"""What clients keep from round to round survives whatever happens to the processes, and costs nobody else anything."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.federated.algorithms import FedAsync, FedBuff, FedDyn, Scaffold
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.trainer import FederatedTrainer

from ...small_federation import SmallData, SmallModule, same_bits, trainer
from ...trainer.runs import Recorder, fit, last_state

STATEFUL: dict[str, Callable[[], dict[str, Any]]] = {
    "SCAFFOLD": lambda: {"aggregator": Scaffold()},
    "FedDyn": lambda: {"aggregator": FedDyn()},
    "FedBuff": lambda: {"aggregator": FedBuff(2), "scheme": "w4a8", "fleet": "mixed"},
    "FedAsync": lambda: {"aggregator": FedAsync(), "fleet": "mixed"},
    "SCAFFOLD in quantized lanes": lambda: {
        "aggregator": Scaffold(),
        "scheme": "w4a8",
        "callbacks": [FixedAllocator(0.5)],
    },
    "error feedback": lambda: {"scheme": "w2a8", "error_feedback": True, "uplink_rounding": "stochastic"},
    "SCAFFOLD and error feedback": lambda: {"aggregator": Scaffold(), "uplink_bits": 2, "error_feedback": True},
}


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL.keys())
def test_a_run_goes_on_to_the_same_bits(after: int, make: Callable[[], dict[str, Any]]) -> None:
    def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
        if record.round == after:
            raise KeyboardInterrupt

    def settings(*callbacks: Any) -> dict[str, Any]:
        own = make()
        more = {"callbacks": [*callbacks, *own.get("callbacks", [])], "max_rounds": 4, "clients_per_round": 3}
        return own | more | {"checkpoint_every_n_rounds": 2}

    unbroken, state = fit(**settings(Recorder()))
    broken = trainer(**settings(Recorder(interrupt)))
    with pytest.raises(KeyboardInterrupt):
        broken.fit(SmallModule(), SmallData())
    resumed, again = fit(ckpt_path=broken.run_dir, **settings(Recorder()))
    assert resumed.run_dir == broken.run_dir
    assert same_bits(state, again)
    kept = [
        sorted(each.relative_to(run.run_dir) for each in run.run_dir.glob("[ci][ln]*_*/*/*"))
        for run in (unbroken, resumed)
    ]
    assert kept[0] == kept[1]


def test_keeps_no_more_than_checkpoints_need() -> None:
    done, _ = fit(SmallModule(), max_rounds=6, aggregator=Scaffold())
    names = {each.name for each in done.run_dir.glob("client_state/0/*")}
    assert names == {"round-000004.state", "round-000005.state", "round-000006.state"}


def test_clients_that_never_took_part_have_nothing() -> None:
    done, _ = fit(SmallModule(), SmallData([8] * 30), max_rounds=2, clients_per_round=3, aggregator=Scaffold())
    assert 3 <= len(list(done.run_dir.glob("client_state/*"))) <= 6
    plain, _ = fit(max_rounds=1)
    assert not (plain.run_dir / "client_state").exists()


def test_what_is_no_number_is_not_kept() -> None:
    class Breaks(SmallModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (float("nan") if len(batch[0]) == 5 else 1.0)

    with pytest.warns(UserWarning, match="client 1 is quarantined"):
        done, _ = fit(Breaks(), SmallData([8, 5]), max_rounds=2, aggregator=Scaffold())
    assert {each.name for each in done.run_dir.glob("client_state/*")} == {"0"}
    assert torch.stack([value.isfinite().all() for value in last_state(done).values()]).all()
