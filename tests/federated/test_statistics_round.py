"""Batch statistics of global models: each view has its own, taken by the clients that made the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedhq_lightning.allocation import FixedAllocator
from fedhq_lightning.federated.statistics_round import pooled
from fedhq_lightning.quantize import QuantScheme, convert
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.views import deployed_view, float_view
from fedhq_lightning.types import StateDict

from ..normed_module import Normed as NormedClassifier
from ..small_federation import SmallData, SmallModule, same_bits
from ..three_ways import NORMED, run_three_ways
from ..trainer.runs import Recorder, checkpoint, fit, records

NAMES = {"net.1.running_mean", "net.1.running_var"}
ALONE = Processes(None)

without_program = pytest.mark.usefixtures("no_program")


class Normed(SmallModule):
    """With a layer between the first two that keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(16))


class Conv(SmallModule):
    """One example has many values per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(40, 3)
        )


def by_hand(module: nn.Module, inputs: Mapping[int, torch.Tensor]) -> StateDict:
    """Mean and variance of what reaches the normalization, of all clients' examples together."""
    with torch.no_grad():
        values = torch.cat([module.net[0](each) for each in inputs.values()])  # type: ignore[index,operator]
    return {"net.1.running_mean": values.mean(0), "net.1.running_var": values.var(0, correction=0)}


@without_program
@pytest.mark.parametrize("allocation", ["ptq", "qat", 0.5])
def test_each_view_has_the_statistics_of_its_own_examples(allocation: Any) -> None:
    """Of whole batches, as the clients of one batch each have them; whatever mode the clients trained in."""
    data = SmallData((8, 6, 5, 8))
    there, _ = fit(Normed(), data, max_rounds=2, scheme="w2a4", callbacks=FixedAllocator(allocation))
    state = checkpoint(there)["state"]["global_state"]
    assert state.keys() - Normed().state_dict().keys() == {f"quantized/{name}" for name in NAMES}
    inputs = {client: data.dataset(client).tensors[0] for client in data.client_ids}
    for view in (float_view(state), deployed_view(state)):
        module = Normed().eval()
        module.load_state_dict(view)
        if view is not state and not same_bits(view, float_view(state)):
            module = convert(module, QuantScheme("w2a4"))
        for name, value in by_hand(module, inputs).items():
            torch.testing.assert_close(view[name], value, rtol=1e-4, atol=1e-5)
    assert not same_bits(float_view(state), deployed_view(state))


@without_program
def test_what_a_client_does_to_the_weights_the_next_does_not_meet() -> None:
    class Drifting(Normed):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if not torch.is_grad_enabled():  # as in the pass that takes statistics
                self.net[0].weight.data.add_(1.0)  # type: ignore[operator,union-attr]
            return loss

    there, state = fit(Drifting(), max_rounds=2, scheme="w4a8", callbacks=FixedAllocator("ptq"))
    _, expected = fit(Normed(), max_rounds=2, scheme="w4a8", callbacks=FixedAllocator("ptq"))
    assert all(record.statistics_seconds for record in records(there)[1:])
    assert same_bits(state, expected)


@without_program
def test_without_a_scheme_there_is_one_view() -> None:
    _, state = fit(Normed(), max_rounds=1)
    assert state.keys() == Normed().state_dict().keys()


@without_program
def test_a_model_without_batch_normalization_has_nothing_to_take() -> None:
    there, state = fit(max_rounds=1, scheme="w4a8", callbacks=FixedAllocator("ptq"))
    assert state.keys() == SmallModule().state_dict().keys()
    assert all(record.statistics_seconds == 0 for record in records(there))


@without_program
def test_layers_that_training_leaves_alone_keep_theirs() -> None:
    class Frozen(Normed):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.net[1].eval()
            return super().training_step(batch, batch_idx)

    module = Frozen()
    module.net[1].running_mean.fill_(0.25)  # type: ignore[union-attr,operator]
    _, state = fit(module, max_rounds=1, scheme="w4a8", callbacks=FixedAllocator("ptq"))
    assert state.keys() == module.state_dict().keys()
    assert state["net.1.running_mean"].eq(0.25).all()


@without_program
@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({"max_rounds": 5, "eval_every_n_rounds": 2}, [False, False, True, False, True, True]),
        ({"max_rounds": 2, "retake_batch_statistics": False}, [False, False, False]),
    ],
)
def test_they_are_taken_where_the_model_is_evaluated_and_cost_time_and_bytes(
    settings: dict[str, Any], taken: list[bool]
) -> None:
    there, _ = fit(Normed(), scheme="w4a8", callbacks=FixedAllocator("ptq"), **settings)
    found = records(there)
    assert [record.statistics_seconds > 0 for record in found] == taken
    assert [record.statistics_uplink_bytes > 0 for record in found] == taken
    assert [record.statistics_downlink_bytes > 0 for record in found] == taken
    for record in found[1:]:
        trained = max(client.virtual_seconds for client in record.clients)
        assert record.virtual_seconds == pytest.approx(trained + record.statistics_seconds)
        assert record.uplink_bytes == record.statistics_uplink_bytes + sum(each.uplink_bytes for each in record.clients)


@without_program
def test_without_validation_after_the_last_round_alone() -> None:
    class Blind(Normed):
        validation_step = L.LightningModule.validation_step

    there, _ = fit(Blind(), scheme="w4a8", callbacks=FixedAllocator("ptq"), max_rounds=3)
    assert [record.statistics_seconds > 0 for record in records(there)] == [False, False, False, True]


@without_program
@pytest.mark.parametrize("hook", ["on_round_end", "on_round_saved"])
def test_a_run_that_is_stopped_between_evaluations_has_those_of_its_last_model(hook: str) -> None:
    class Stops(Recorder):
        pass

    def stop(self: Recorder, trainer: Any, record: Any) -> None:
        trainer.should_stop = record.round == 1

    setattr(Stops, hook, stop)
    settings: dict[str, Any] = {"scheme": "w4a8", "max_rounds": 9, "eval_every_n_rounds": 4}
    there, state = fit(Normed(), callbacks=[FixedAllocator("ptq"), Stops()], **settings)
    _, whole = fit(Normed(), callbacks=FixedAllocator("ptq"), **settings | {"max_rounds": 1})
    assert [record.round for record in records(there)] == [0, 1]
    assert same_bits(state, whole)


@without_program
def test_fewer_bytes_go_up_in_training() -> None:
    sizes = []
    for retakes in (True, False):
        there, _ = fit(Normed(), max_rounds=1, retake_batch_statistics=retakes)
        sizes.append(sum(each.uplink_bytes for each in records(there)[1].clients))
    assert sizes[0] < sizes[1] - 4 * 2 * 4 * 16 * 0.9  # four clients, two tensors of sixteen values


@without_program
def test_a_client_of_one_example_does_no_harm() -> None:
    """Its batch has a variance where a layer sees many values of it."""
    _, state = fit(Conv(), SmallData((8, 1, 8)), max_rounds=2, scheme="w4a8", callbacks=FixedAllocator("ptq"))
    assert all(value.isfinite().all() for value in state.values())
    assert (state["quantized/net.2.running_var"] > 0).all()


@without_program
def test_a_client_whose_batch_tells_nothing_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single values, or such as are not finite."""

    class Odd(SmallData):
        def calibration_batch(self, client_id: Any) -> Any:
            inputs, labels = super().calibration_batch(client_id)
            return (inputs[:1], labels[:1]) if client_id == 1 and self.is_odd else (inputs, labels)

    odd = Odd((8, 8, 8))
    odd.is_odd = False
    settings: dict[str, Any] = {"max_rounds": 1, "scheme": "w4a8", "callbacks": FixedAllocator("ptq")}
    _, whole = fit(Normed(), odd, **settings)
    odd.is_odd = True
    _, without = fit(Normed(), odd, **settings)
    weights = [name for name in whole if "running" not in name]
    assert all(same_bits({"": whole[name]}, {"": without[name]}) for name in weights)
    assert not same_bits(whole, without)
    assert without["quantized/net.1.running_var"].isfinite().all()


@without_program
def test_where_no_client_can_they_stay_and_that_is_said_once() -> None:
    class Single(SmallData):
        def calibration_batch(self, client_id: Any) -> Any:
            inputs, labels = super().calibration_batch(client_id)
            return (inputs[:1], labels[:1]) if self.is_fitting else (inputs, labels)

    class Starts(Recorder):
        def on_fit_start(self, trainer: Any) -> None:
            data.is_fitting = True

    data = Single((8, 8))
    data.is_fitting = False
    with pytest.warns(UserWarning, match="none of 2 clients could take BatchNorm statistics") as said:
        _, state = fit(Normed(), data, max_rounds=2, callbacks=Starts())
    assert sum("BatchNorm statistics" in str(each.message) for each in said) == 1
    assert state["net.1.running_mean"].eq(0).all()


@without_program
def test_a_step_that_works_in_training_mode_alone() -> None:
    class Two(Normed):
        def forward(self, inputs: Any) -> Any:
            return (super().forward(inputs), inputs.sum()) if self.training else super().forward(inputs)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, labels = batch
            outputs, _ = self(inputs)
            return nn.functional.cross_entropy(outputs, labels)

    there, _ = fit(Two(), SmallData((8, 8)), max_rounds=1)
    _, same = fit(Normed(), SmallData((8, 8)), max_rounds=1)
    assert same_bits(checkpoint(there)["state"]["global_state"], same)


@pytest.mark.usefixtures("no_report")
class TestAfterwards:
    @pytest.fixture(scope="class")
    @staticmethod
    def settings() -> dict[str, Any]:
        return {"max_rounds": 3, "scheme": "w2a4", "callbacks": FixedAllocator(0.5), "ema_decay": 0.5}

    def test_every_way_to_the_model_gives_the_deployed_views_metrics(
        self, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        module = Normed()
        there, _ = fit(module, **settings)
        best = there.summary["best_round"]
        logged = {name: value for name, value in records(there)[best].metrics.items() if not name.startswith("train")}
        assert there.validate() == logged
        assert there.validate(Normed(), SmallData(), ckpt_path="best") == logged
        program = torch.export.load(there.run_dir / "model" / "model.pt2").module()
        inputs = torch.randn(9, 12)
        predicted = there.predict(data=torch.utils.data.DataLoader(inputs, 9))[0]
        torch.testing.assert_close(program(inputs), predicted, rtol=0, atol=0)
        loaded = Normed.load_from_checkpoint(there.run_dir / "checkpoints" / "best.ckpt")
        assert same_bits(loaded.state_dict(), module.state_dict())
        assert same_bits(load_file(there.run_dir / "model" / "weights.safetensors"), module.state_dict())

    def test_weights_of_the_users_have_one_view(self, settings: dict[str, Any]) -> None:
        module = Normed()
        there, _ = fit(module, **settings)
        as_left = there.validate()
        with torch.no_grad():
            module.net[1].running_var.mul_(3)  # type: ignore[union-attr,operator]
        converted = convert(Normed.eval(module), QuantScheme("w2a4"))
        changed = there.validate()
        assert changed != as_left
        inputs, labels = next(iter(torch.utils.data.DataLoader(SmallData().val_dataloader().dataset, 50)))
        loss = nn.functional.cross_entropy(converted(inputs), labels)
        assert changed["quantized/val_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_they_are_kept_in_the_modules_dtype() -> None:
    state = RunState({"a.running_mean": torch.zeros(2, dtype=torch.float64)})
    state.take_statistics({"a.running_mean": torch.ones(2), "quantized/a.running_mean": torch.ones(2)})
    assert {value.dtype for value in state.global_state.values()} == {torch.float64}


def test_exact_and_whatever_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [1000 + 0.01 * torch.randn(50 * (1 + each), 3, generator=generator) for each in range(4)]
    received = {
        each: {"a.running_mean": value.mean(0), "a.running_var": value.var(0, correction=0)}
        for each, value in enumerate(values)
    }
    weights = {each: len(value) for each, value in enumerate(values)}
    found = pooled(received, weights, ALONE)
    together = torch.cat(values).double()
    torch.testing.assert_close(found["a.running_mean"], together.mean(0).float())
    # One client's mean is rounded to float32: to 6e-5 of a thousand.
    torch.testing.assert_close(found["a.running_var"], together.var(0, correction=0).float(), rtol=0.05, atol=0)
    assert same_bits(found, pooled(dict(reversed(received.items())), weights, ALONE))
    assert pooled({}, {}, ALONE) == {}


@without_program
def test_two_processes_and_a_resumed_run_have_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for folder in run_three_ways(tmp_path, NORMED | {"trainer.scheme": "w3a8"}, monkeypatch):
        states.append(load_checkpoint(folder / "checkpoints" / "round-000003.ckpt")["state"]["global_state"])
    assert "quantized/layers.2.running_mean" in states[0]
    assert same_bits(states[0], states[1])
    assert same_bits(states[0], states[2])
    assert NormedClassifier().state_dict().keys() < states[0].keys()
