"""What the trainer's options do."""

import gc
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fedhq_lightning.allocation import Allocator
from fedhq_lightning.callbacks import EarlyStopping, FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedAvg, FedOpt
from fedhq_lightning.federated.algorithms.aggregator import Gathered
from fedhq_lightning.federated.client_fit import Update
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import Plan, StateDict

from ..small_federation import NUM_FEATURES, SmallData, SmallModule, same_bits, trainer
from .runs import Recorder, checkpoint, fit, records


@pytest.mark.usefixtures("quick")
class TestOptions:
    def test_ema_is_what_is_evaluated_and_deployed(self) -> None:
        states: list[StateDict] = []

        class Keeps(FedAvg):
            def step(self, current: StateDict, gathered: Gathered) -> StateDict:
                states.append(super().step(current, gathered))
                return states[-1]

        done, plain = fit(max_rounds=3, ema_decay=0.75, aggregator=Keeps())
        assert same_bits(plain, fit(max_rounds=3)[1]), "averaging must not change training"
        wanted = states[0]["net.0.weight"]
        for state in states[1:]:
            wanted = 0.75 * wanted + 0.25 * state["net.0.weight"]
        saved = checkpoint(done)["state"]
        torch.testing.assert_close(saved["averaged_state"]["net.0.weight"], wanted)
        module = SmallModule()
        module.load_state_dict(saved["averaged_state"])
        got = trainer().validate(module, SmallData())
        assert got["fp/val_loss"] == records(done)[3].metrics["fp/val_loss"]

    def test_the_mean_from_a_round_on_is_what_is_evaluated_and_deployed(self) -> None:
        lasts = [fit(max_rounds=rounds)[1]["net.0.weight"] for rounds in (2, 3, 4)]
        done, plain = fit(max_rounds=4, average_from=2)
        assert torch.equal(plain["net.0.weight"], lasts[-1]), "averaging must not change training"
        saved = checkpoint(done)["state"]
        torch.testing.assert_close(saved["averaged_state"]["net.0.weight"], torch.stack(lasts).mean(0))
        module = SmallModule()
        module.load_state_dict(saved["averaged_state"])
        assert trainer().validate(module, SmallData())["fp/val_loss"] == records(done)[4].metrics["fp/val_loss"]

    def test_early_stopping(self) -> None:
        stopping = EarlyStopping(patience=2, min_delta=100.0)
        done, _ = fit(max_rounds=50, callbacks=stopping)
        assert done.summary["rounds"] == 3, "round 1 is the first to be judged"
        assert "stopped after round 3" in stopping.reason
        assert checkpoint(done)["state"]["stopped"] is True

    @pytest.mark.filterwarnings("ignore:uplink 'weights' rounds")
    def test_downlink_on_the_grid(self) -> None:
        received: list[int] = []

        class Notes(SmallModule):
            def on_train_start(self) -> None:
                received.append(len(self.net[0].weight[0].unique()))

        settings: dict[str, Any] = {"scheme": "w2a8", "callbacks": FixedAllocator("ptq"), "max_rounds": 1}
        settings["scheme"] = QuantScheme("w2a8", edge_bits=None)
        done, _ = fit(Notes(), downlink="scheme", **settings)
        on_grid, received[:] = received[1:], []  # the first is the probe's
        other, _ = fit(Notes(), **settings)
        assert max(on_grid) <= 4
        assert min(received[1:]) == NUM_FEATURES
        assert done.summary["downlink_bytes"] < other.summary["downlink_bytes"]

    @pytest.mark.parametrize("uplink", ["weights", "delta"])
    def test_uplink(self, uplink: str) -> None:
        done, state = fit(scheme="w4a8", callbacks=FixedAllocator("ptq"), uplink=uplink, max_rounds=3)
        fp, _ = fit(max_rounds=3)
        assert done.summary["uplink_bytes"] < fp.summary["uplink_bytes"]
        losses = [each.metrics["fp/val_loss"] for each in records(done)]
        assert losses[-1] < losses[0]
        assert all(value.isfinite().all() for value in state.values())

    def test_bf16_mixed(self) -> None:
        kinds: list[torch.dtype] = []

        class Notes(SmallModule):
            def forward(self, inputs: Tensor) -> Tensor:
                output = super().forward(inputs)
                kinds.append(output.dtype)
                return output

        done, state = fit(Notes(), precision="bf16-mixed", max_rounds=3)
        assert torch.bfloat16 in kinds
        assert {value.dtype for value in state.values()} == {torch.float32}
        losses = [each.metrics["fp/val_loss"] for each in records(done)]
        assert losses[-1] < losses[0]
        assert not same_bits(state, fit(max_rounds=3)[1])
        for mode in ("ptq", "qat"):
            fit(precision="bf16-mixed", scheme="w4a8", callbacks=FixedAllocator(mode), max_rounds=1)  # type: ignore[arg-type]

    def test_round_lr(self) -> None:
        rates: list[float] = []

        class Notes(SmallModule):
            def on_train_start(self) -> None:
                rates.append(self.optimizers().param_groups[0]["lr"])

        fit(Notes(), SmallData((9,)), max_rounds=4, round_lr="linear")
        assert rates[1:] == pytest.approx([0.1, 0.075, 0.05, 0.025])  # the first is the probe's

    def test_mode_lr(self) -> None:
        rates: list[float] = []

        class Notes(SmallModule):
            def on_train_start(self) -> None:
                rates.append(self.optimizers().param_groups[0]["lr"])

        settings: dict[str, Any] = {"scheme": "w4a8", "mode_lr": {"qat": 0.5}, "round_lr": 0.5}
        fit(Notes(), SmallData((9, 9)), max_rounds=2, callbacks=FixedAllocator({0: "ptq", 1: "qat"}), **settings)
        assert rates[1:] == pytest.approx([0.1, 0.05, 0.05, 0.025])

    def test_evaluates_and_saves_every_n_rounds(self) -> None:
        saved: list[list[str]] = []

        def look(there: FederatedTrainer, record: RoundRecord) -> None:
            saved.append(sorted(path.name for path in (there.run_dir / "checkpoints").glob("round*")))

        done, _ = fit(max_rounds=5, eval_every_n_rounds=2, checkpoint_every_n_rounds=3, callbacks=Recorder(look))
        assert [each.metric_fp is not None for each in records(done)] == [True, False, True, False, True, True]
        assert saved[-1] == ["round-000000.ckpt", "round-000003.ckpt"]
        names = sorted(path.name for path in (done.run_dir / "checkpoints").glob("round*"))
        assert names == ["round-000003.ckpt", "round-000005.ckpt"]

    def test_hooks_come_in_order(self) -> None:
        recorder = Recorder()
        fit(callbacks=recorder, data=SmallData({"a": 9, "b": 12}))
        rounds = [[f"round {n} start ['a', 'b']", "client b", "client a", f"round {n} end"] for n in (1, 2)]
        assert recorder.calls == ["fit start", "round 0 end", *rounds[0], *rounds[1], "fit end allocator_seconds"]

    def test_a_callback_may_end_the_run(self) -> None:
        def stop(there: FederatedTrainer, record: RoundRecord) -> None:
            there.should_stop = record.round == 1

        done, _ = fit(max_rounds=9, callbacks=Recorder(stop))
        assert done.summary["rounds"] == 1
        assert (done.run_dir / "checkpoints" / "round-000001.ckpt").exists()

    def test_an_error_is_told_to_callbacks(self) -> None:
        def fail(there: FederatedTrainer, record: RoundRecord) -> None:
            raise ZeroDivisionError

        recorder = Recorder(fail)
        with pytest.raises(ZeroDivisionError):
            fit(callbacks=recorder)
        assert recorder.calls[-1] == "exception ZeroDivisionError"

    def test_threads_are_put_back(self) -> None:
        seen: list[int] = []

        class Notes(SmallModule):
            def on_train_start(self) -> None:
                seen.append(torch.get_num_threads())

        before = torch.get_num_threads()
        fit(Notes(), threads=2, max_rounds=1)
        assert set(seen) == {2}
        assert torch.get_num_threads() == before

    def test_the_allocator_decides_modes(self) -> None:
        class Odd(Allocator):
            def begin(self, context: Any) -> None:
                self.observed: list[int] = []

            def propose(self, round_number: int, cohort: Sequence[Any]) -> Plan:
                modes = ("fp", "ptq", "qat")
                return Plan({client_id: modes[(client_id + round_number) % 3] for client_id in cohort})

            def observe(self, result: RoundRecord) -> None:
                self.observed.append(result.round)

        allocator = Odd()
        done, _ = fit(scheme="w4a8", callbacks=allocator)
        assert [each.mode for each in records(done)[1].clients] == ["ptq", "qat", "fp", "ptq"]
        assert [each.mode for each in records(done)[2].clients] == ["qat", "fp", "ptq", "qat"]
        assert allocator.observed == [0, 1, 2]

    def test_a_plan_must_name_the_cohort(self) -> None:
        class Forgets(Allocator):
            def propose(self, round_number: int, cohort: Sequence[Any]) -> Plan:
                return Plan(dict.fromkeys(cohort[1:], "ptq"))

        with pytest.raises(ConfigurationError, match="Forgets planned 3 clients for a cohort of 4"):
            fit(scheme="w4a8", callbacks=Forgets())

    def test_a_plan_must_name_known_modes(self) -> None:
        class Shouts(Allocator):
            def propose(self, round_number: int, cohort: Sequence[Any]) -> Plan:
                return Plan(dict.fromkeys(cohort, "QAT"))  # type: ignore[arg-type]  # what is tested

        with pytest.raises(ConfigurationError, match="Shouts planned mode 'QAT': must be one of fp, ptq, qat"):
            fit(scheme="w4a8", callbacks=Shouts())

    def test_an_aggregator_starts_anew_with_each_run(self) -> None:
        shared = FedOpt(partial(torch.optim.SGD, lr=1.0, momentum=0.9))
        first = fit(aggregator=shared, max_rounds=3)[1]
        assert same_bits(fit(aggregator=shared, max_rounds=3)[1], first), "momentum was carried into another trainer"

    def test_rounds_are_kept_without_their_clients(self) -> None:
        """Callbacks see the round's clients; what a process holds does not grow with them."""
        seen: list[int] = []
        clients: list[weakref.ref[ClientRecord]] = []

        def look(there: FederatedTrainer, record: RoundRecord) -> None:
            seen.append(len(record.clients))
            gc.collect()
            assert not [each for each in clients if each() is not None], "those of the rounds before"
            clients.extend(map(weakref.ref, record.clients))

        done, _ = fit(max_rounds=3, callbacks=Recorder(look))
        assert seen == [0, 4, 4, 4]
        assert [len(record.clients) for record in records(done)] == seen

    def test_updates_are_dropped_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        held: list[int] = []
        opened = Link.open

        def look(self: Link, payload: bytes, *arguments: Any) -> Any:
            held.append(sum(type(each) is Update for each in gc.get_objects()))
            return opened(self, payload, *arguments)

        monkeypatch.setattr(Link, "open", look)
        fit(max_rounds=1, data=SmallData((9,) * 6))
        assert len(held) == 12, "in the first round each waits for the others"
        assert max(held) <= 2

    def test_label_divergence_reaches_the_allocator(self) -> None:
        done, _ = fit(scheme="w4a8", callbacks=FixedAllocator(0.5, by="divergence"), max_rounds=1)
        assert records(done)[1].mode_counts == {"fp": 0, "ptq": 2, "qat": 2}
        with pytest.raises(ConfigurationError, match="divergence"):
            fit(scheme="w4a8", callbacks=FixedAllocator(0.5, by="divergence"), data=SmallData(tells=False))
