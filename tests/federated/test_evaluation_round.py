"""Evaluation on clients, in runs of small things."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import parts
from fedhq_lightning.federated.client_evaluation import ClientEvaluation, directions_of
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy
from fedhq_lightning.federated.setup import Job
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.types import ClientId

from ..small_federation import SmallData, SmallModule, examples, trainer
from ..trainer.runs import Recorder, fit, last_state, records

BACK = (5, 40, 0, 9)
NAMES = ("val_loss", "val_accuracy")


class HoldingBack(SmallData):
    """Each client holds some examples back, but one none."""

    def __init__(self, back: Sequence[int] = BACK, sizes: Mapping[ClientId, int] | Sequence[int] = (20, 13, 8, 27)):
        super().__init__(sizes)
        self.back = tuple(back)

    @override
    def client_val_dataloader(self, client_id: ClientId) -> Any:
        count = self.back[list(self.sizes).index(client_id)]
        return DataLoader(examples(count, 50 + count), 7) if count else None


class OnceOnly(SmallModule):
    """Keeps what would tell a second evaluation in the same module from a first."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.seen = getattr(self, "seen", 0) + len(batch[0])
        self.log("seen", float(self.seen), reduce_fx="max")


class Counting(SmallModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if len(batch[0]) == 5:
            raise ValueError("five")
        super().validation_step(batch, batch_idx)


class Silent(SmallModule):
    validation_step = L.LightningModule.validation_step


def by_hand(state: Mapping[str, torch.Tensor], count: int) -> dict[str, float]:
    """Loss and accuracy over what a client holds back, in one batch."""
    module = SmallModule()
    module.load_state_dict(state)
    inputs, labels = examples(count, 50 + count)[:]
    logits = module(inputs)
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return {"fp/val_loss": nn.functional.cross_entropy(logits, labels).item(), "fp/val_accuracy": accuracy}


def rounds_of(
    module: L.LightningModule | None = None, data: Any = None, ckpt_path: Path | None = None, **settings: Any
) -> tuple[Any, Any]:
    """A run that leaves its rounds and a summary, and no model; the trainer and the last round's global model."""
    there = trainer(**settings)
    there.writes_model = False
    there.fit(module or SmallModule(), data or SmallData(), ckpt_path)
    return there, last_state(there)


def evaluations(there: Any) -> list[RoundRecord]:
    return [record for record in records(there) if record.evaluation is not None]


class TestWhatIsFound:
    @pytest.fixture(scope="class")
    @staticmethod
    def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
        root = tmp_path_factory.mktemp("runs")
        settings = {"scheme": "w4a8", "fleet": "mixed", "max_rounds": 3, "clients_per_round": 2}
        return fit(
            data=HoldingBack(),
            default_root_dir=root,
            callbacks=FixedAllocator({0: "qat", **dict.fromkeys((1, 2, 3), "ptq")}),
            **settings,
        )

    def test_is_what_each_client_finds_on_its_own_examples(self, done: Any) -> None:
        there, last = done
        record = records(there)[-1]
        assert record.evaluation is not None
        assert [each.client_id for each in record.evaluation.clients] == [0, 1, 3]
        assert record.evaluation.without == 1
        for each in record.evaluation.clients:
            assert each.num_examples == BACK[int(each.client_id)]
            assert set(each.metrics) == {f"{view}/{name}" for view in ("fp", "quantized") for name in NAMES}
            for name, value in by_hand(last, each.num_examples).items():
                assert each.metrics[name] == pytest.approx(value, abs=1e-6)

    def test_figures_are_among_the_metrics_and_in_the_table(self, done: Any) -> None:
        there, _ = done
        for record in evaluations(there):
            values = [each.metrics["quantized/val_accuracy"] for each in record.evaluation.clients]
            assert record.metrics["quantized/clients/val_accuracy/mean"] == pytest.approx(sum(values) / 3)
            assert record.metrics["quantized/clients/val_accuracy/worst_decile"] == min(values)
            losses = [each.metrics["fp/val_loss"] for each in record.evaluation.clients]
            assert record.metrics["fp/clients/val_loss/worst_decile"] == max(losses)
        header = (there.run_dir / "metrics.csv").read_text().splitlines()[0].split(",")
        assert {"fp/clients/val_loss/spread", "evaluation/without", "evaluation/virtual_seconds"} <= set(header)
        assert "evaluation/quantized/val_accuracy/mode/ptq" in header

    def test_modes_are_those_of_the_last_time(self, done: Any) -> None:
        there, _ = done
        trained: dict[ClientId, str] = {}
        for record in records(there):
            trained |= {client.client_id: client.mode for client in record.clients}
            if record.evaluation is not None:
                found = {each.client_id: each.mode for each in record.evaluation.clients}
                assert found == {client_id: trained.get(client_id) for client_id in (0, 1, 3)}

    def test_costs_virtual_time_and_bytes(self, done: Any) -> None:
        there, _ = done
        for record in evaluations(there):
            trained = max(client.virtual_seconds for client in record.clients)
            assert record.evaluation.virtual_seconds > 0
            assert record.virtual_seconds == pytest.approx(trained + record.evaluation.virtual_seconds)
            assert record.uplink_bytes > sum(client.uplink_bytes for client in record.clients)
            down = sum(client.downlink_bytes for client in record.clients)
            assert record.downlink_bytes == down + record.evaluation.downlink_bytes

    def test_the_summary_tells_of_the_deployed_round(self, done: Any) -> None:
        there, _ = done
        told, best = there.summary["on_clients"], there.summary["best_round"]
        record = records(there)[best]
        assert told["metric_name"] == there.summary["metric_name"] == "val_loss"
        assert (told["clients"], told["without"], told["examples"]) == (3, 1, 54)
        for view in ("fp", "quantized"):
            for name, value in told[view].items():
                assert record.metrics[f"{view}/clients/val_loss/{name}"] == value
        assert sum(tier["clients"] for tier in told["tiers"]) == sum(mode["clients"] for mode in told["modes"]) == 3
        values = {each.client_id: each.metrics["quantized/val_loss"] for each in record.evaluation.clients}
        worst = there.summary["worst_client"]
        assert (worst["client_id"], worst["metric"]) == (max(values, key=values.__getitem__), max(values.values()))
        assert worst["metric_name"] == "val_loss on the examples that it holds back"

    def test_the_report_shows_it(self, done: Any) -> None:
        there, _ = done
        page = (there.run_dir / "report.html").read_text()
        for text in ("On the clients&#x27; own examples", "val_loss over clients by round", "last trained in PTQ"):
            assert text in page


def test_round_0_and_rounds_without_evaluation_ask_nobody() -> None:
    there, _ = rounds_of(data=HoldingBack(), max_rounds=5, eval_every_n_rounds=2)
    assert [record.round for record in evaluations(there)] == [2, 4, 5]
    there, _ = rounds_of(data=HoldingBack(), max_rounds=5, evaluate_clients=ClientEvaluation(every_n_rounds=2))
    assert [record.round for record in evaluations(there)] == [2, 4]


@pytest.mark.parametrize(("asked", "expected"), [(2, 2), (0.75, 3), (None, 4), (100, 4)])
def test_the_same_clients_each_time(asked: Any, expected: int) -> None:
    data = HoldingBack((5, 6, 7, 8))
    there, _ = rounds_of(data=data, evaluate_clients=ClientEvaluation(clients=asked))
    first, second = ([each.client_id for each in record.evaluation.clients] for record in evaluations(there))
    assert first == second
    assert len(first) == expected


def test_are_drawn_by_a_seed_of_their_own() -> None:
    clients, options = list(range(200)), ClientEvaluation(clients=10)
    assert options.panel(clients, 0) == options.panel(clients, 0) != options.panel(clients, 1)
    apart = ClientEvaluation(clients=10, seed=1)
    assert apart.panel(clients, 0) == apart.panel(clients, 5) == options.panel(clients, 1)


def test_nothing_is_asked_of_clients_that_hold_nothing_back() -> None:
    there, _ = fit()
    assert evaluations(there) == []
    assert there.summary["on_clients"] is None
    assert there.summary["worst_client"]["metric_name"] == "val_loss on its own training examples"


def test_can_be_turned_off_and_changes_no_weight() -> None:
    without, state = rounds_of(data=HoldingBack(), evaluate_clients=False)
    _, other = rounds_of(data=HoldingBack())
    assert evaluations(without) == []
    assert without.summary["on_clients"] is None
    assert all(state[name].equal(other[name]) for name in state)


class TestMonitor:
    def test_a_figure_may_choose_the_best_round(self) -> None:
        monitor = "clients/val_accuracy/worst_decile"
        there, _ = rounds_of(data=HoldingBack(), monitor=monitor, scheme="w4a8", max_rounds=3)
        for record in evaluations(there):
            assert record.metric_quantized == record.metrics[f"quantized/{monitor}"]
            assert record.metric_fp == record.metrics[f"fp/{monitor}"]
        values = [record.metric_quantized or 0.0 for record in evaluations(there)]
        assert there.monitored.mode == "max"
        assert there.summary["metric_quantized"] == max(values)
        assert there.summary["on_clients"]["metric_name"] == "val_accuracy"

    def test_the_spread_needs_a_direction(self) -> None:
        with pytest.raises(ConfigurationError, match="monitor_mode to min or max"):
            rounds_of(data=HoldingBack(), monitor="clients/val_accuracy/spread")
        there, _ = rounds_of(data=HoldingBack(), monitor="clients/val_accuracy/spread", monitor_mode="min")
        record = evaluations(there)[-1]
        values = [each.metrics["fp/val_accuracy"] for each in record.evaluation.clients]
        assert record.metrics["fp/clients/val_accuracy/worst_decile"] == min(values)

    def test_is_refused_where_clients_do_not_evaluate(self) -> None:
        with pytest.raises(ConfigurationError, match="nobody logs it; logged: val_loss, val_accuracy"):
            rounds_of(monitor="clients/val_accuracy/mean")

    def test_directions(self) -> None:
        metrics = ["score_ratio", "loss", "acc"]
        assert directions_of(metrics, "acc", "min") == {"loss": "min", "acc": "min"}
        assert directions_of(metrics, "clients/score_ratio/mean", "max")["score_ratio"] == "max"
        assert directions_of(metrics, "clients/acc/spread", "min")["acc"] == "max"


def test_a_client_meets_nothing_that_another_left() -> None:
    there, _ = rounds_of(OnceOnly(), HoldingBack((5, 6, 7, 8)))
    record = evaluations(there)[-1]
    assert [each.metrics["fp/seen"] for each in record.evaluation.clients] == [5.0, 6.0, 7.0, 8.0]


class TestFailingClients:
    def test_is_left_out_and_counted(self) -> None:
        with pytest.warns(UserWarning, match="client 3 evaluated the model .*: ValueError: five .*; it is left out"):
            there, _ = rounds_of(Counting(), HoldingBack((3, 4, 6, 5)))
        for record in evaluations(there):
            assert [each.client_id for each in record.evaluation.clients] == [0, 1, 2]
            assert record.evaluation.without == 1

    def test_ends_the_run_if_asked_to(self) -> None:
        with pytest.raises(ValueError, match="five"):
            rounds_of(Counting(), HoldingBack((3, 4, 6, 5)), on_client_error="raise")

    def test_ends_it_before_round_1_where_the_first_fails(self) -> None:
        with pytest.raises(ValueError, match="five") as caught:
            rounds_of(Counting(), HoldingBack((5, 4, 6, 3)))
        assert any("evaluate_clients: false leaves that out" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("module", "data", "settings", "said"),
    [
        (SmallModule(), SmallData(), {"evaluate_clients": True}, "no client of SmallData holds examples back"),
        (SmallModule(), HoldingBack((0,) * 4), {"evaluate_clients": True}, "no client of HoldingBack holds examples"),
        (Silent(), HoldingBack(), {"evaluate_clients": True}, "Silent has no validation_step"),
        (
            SmallModule(),
            HoldingBack(),
            {"evaluate_clients": ClientEvaluation(every_n_rounds=3), "eval_every_n_rounds": 2},
            "every_n_rounds 3: must be a multiple of eval_every_n_rounds 2",
        ),
    ],
)
def test_refuses_what_cannot_be(module: Any, data: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        rounds_of(module, data, **settings)


def test_private_runs_ask_nobody() -> None:
    pytest.importorskip("opacus")
    privacy = CentralPrivacy(noise_multiplier=1.0, clip_norm=1.0, delta=1e-3)
    there, _ = rounds_of(data=HoldingBack(), privacy=privacy, max_rounds=1)
    assert evaluations(there) == []
    with pytest.raises(ConfigurationError, match="privacy and evaluate_clients cannot be together"):
        rounds_of(data=HoldingBack(), privacy=privacy, evaluate_clients=True)


@pytest.mark.parametrize(
    "given", [{"every_n_rounds": 0}, {"every_n_rounds": 1.5}, {"clients": 0}, {"clients": 1.5}, {"clients": True}]
)
def test_refuses_options_out_of_range(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="evaluate_clients: "):
        ClientEvaluation(**given)


def test_a_resumed_run_finds_the_same(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_rounds": 4, "clients_per_round": 2, "scheme": "w4a8"}
    callbacks = [FixedAllocator(0.5), Recorder()]
    whole, _ = rounds_of(data=HoldingBack(), default_root_dir=tmp_path / "whole", callbacks=callbacks, **settings)

    def end(trainer: Any, record: RoundRecord) -> None:
        if record.round == 2:
            raise KeyboardInterrupt

    stopped = {"default_root_dir": tmp_path / "stopped", **settings}
    with pytest.raises(KeyboardInterrupt):
        rounds_of(data=HoldingBack(), callbacks=[FixedAllocator(0.5), Recorder(end)], **stopped)
    (run_dir,) = (tmp_path / "stopped").glob("*/*")
    resumed, _ = rounds_of(data=HoldingBack(), ckpt_path=run_dir, callbacks=callbacks, **stopped)
    found, expected = evaluations(resumed), evaluations(whole)
    assert [record.evaluation for record in found] == [record.evaluation for record in expected]
    assert [record.total_virtual_seconds for record in found] == [record.total_virtual_seconds for record in expected]
    assert resumed.summary["on_clients"] == whole.summary["on_clients"]
    assert load_checkpoint(resumed.run_dir / "checkpoints" / "round-000004.ckpt")["state"]["last_modes"]
    assert json.loads((resumed.run_dir / "summary.json").read_text())["on_clients"] == whole.summary["on_clients"]


def test_each_client_may_have_a_model_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is evaluated is asked for by client, so that personal models are evaluated by the same code."""
    seen: list[Job] = []
    evaluation_of = parts.evaluation_of
    monkeypatch.setattr(parts, "evaluation_of", lambda *given: seen.append(evaluation_of(*given)) or seen[-1])
    _, last = rounds_of(data=HoldingBack())
    own = {0: last, 1: {name: value + 0.1 for name, value in last.items()}, 2: last, 3: last}
    found = seen[0].evaluate(2, own.__getitem__, {})
    for each in found.clients:
        for name, value in by_hand(own[int(each.client_id)], each.num_examples).items():
            assert each.metrics[name] == pytest.approx(value, abs=1e-5)
