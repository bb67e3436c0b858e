"""Static activation ranges in a federation: calibrated or learned by clients, averaged exactly, used where deployed."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from fedhq_lightning.allocation import FixedAllocator
from fedhq_lightning.callbacks import FederatedAveraging, QuantizedTraining
from fedhq_lightning.cli.evaluate_model import evaluate_model
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import lane_fit
from fedhq_lightning.federated.algorithms import FedOpt
from fedhq_lightning.federated.client_fit import ClientFitter
from fedhq_lightning.federated.client_ranges import ClientRanges
from fedhq_lightning.federated.payload import PackedState, decoded
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.quantize import LaneOptions, QuantScheme, attach_ranges, convert, prepare
from fedhq_lightning.quantize.activation_ranges import best_range, is_calibrated
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.support.views import is_range
from fedhq_lightning.types import ClientId, FitOptions, StateDict

from ..small_federation import SmallData, SmallModule, same_bits
from ..three_ways import NORMED, run_three_ways
from ..trainer.runs import checkpoint, fit, records

CPU = torch.device("cpu")
SCHEME = QuantScheme("w4a4s")
STATIC: dict[str, Any] = {"max_rounds": 2, "scheme": "w4a4s"}


class Normed(SmallModule):
    """With a layer between the first two that keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(16))


def ranges(state: StateDict) -> StateDict:
    return {name: value for name, value in state.items() if is_range(name)}


def with_ranges(module: L.LightningModule) -> L.LightningModule:
    attach_ranges(module, SCHEME)
    return module


def client_ranges(
    make: type[SmallModule], data: SmallData, batch_norms: Mapping[str, Sequence[str]] | None = None
) -> ClientRanges:
    """Of one client after another, in a lane of its own."""
    module = prepare(with_ranges(make()), "qat", SCHEME)
    lane = ClientTrainer(module, FitOptions(), CPU, datamodule=data)
    return ClientRanges(SCHEME, lambda: lane, with_ranges(make()), data, CPU, batch_norms or {})


class TestCalibration:
    def test_is_of_what_enters_the_deployed_models_layers(self) -> None:
        data, state = SmallData((8, 8)), with_ranges(SmallModule()).state_dict()
        found = client_ranges(SmallModule, data).calibrated(state, 1)
        assert found.keys() == {"net.0.fedhq_activation_range", "net.2.fedhq_activation_range"}
        inputs = data.dataset(1).tensors[0]
        assert torch.equal(found["net.0.fedhq_activation_range"], best_range(inputs, 8))
        module = with_ranges(SmallModule())
        module.load_state_dict(state | found)
        hidden = convert(module, SCHEME).net[:2](inputs)  # type: ignore[index]
        torch.testing.assert_close(found["net.2.fedhq_activation_range"], best_range(hidden, 8), rtol=1e-5, atol=1e-5)

    def test_normalizes_by_the_batch_where_statistics_are_taken_anew(self) -> None:
        data, state = SmallData((8, 8)), with_ranges(Normed()).state_dict()
        state["net.1.running_var"] = torch.full((16,), 1e6)
        retaken = client_ranges(Normed, data, {"net.1": ["net.1"]}).calibrated(state, 0)["net.3.fedhq_activation_range"]
        kept = client_ranges(Normed, data).calibrated(state, 0)["net.3.fedhq_activation_range"]
        assert retaken[1] > 1 > 0.1 > kept[1]

    def test_of_a_single_example_normalizes_by_running_statistics(self) -> None:
        data, state = SmallData((1,)), with_ranges(Normed()).state_dict()
        found = client_ranges(Normed, data, {"net.1": ["net.1"]}).calibrated(state, 0)
        assert all(is_calibrated(each) for each in found.values())

    def test_draws_no_random_numbers(self) -> None:
        there, state = client_ranges(SmallModule, SmallData((20, 13))), with_ranges(SmallModule()).state_dict()
        torch.manual_seed(3)
        expected = torch.rand(3)
        torch.manual_seed(3)
        once = there.calibrated(state, 0)
        assert torch.equal(torch.rand(3), expected)
        assert same_bits(once, there.calibrated(state, 0))

    def test_completes_only_what_nobody_has_calibrated(self) -> None:
        there = client_ranges(SmallModule, SmallData((20, 0)))
        mine = torch.tensor([-9.0, 9.0])
        state = with_ranges(SmallModule()).state_dict() | {"net.0.fedhq_activation_range": mine}
        completed = there.completed(state, 0)
        assert torch.equal(completed["net.0.fedhq_activation_range"], mine)
        assert is_calibrated(completed["net.2.fedhq_activation_range"])
        assert there.completed(completed, 0) is completed
        assert there.completed(state, 1) is state, "a client without a batch"


@pytest.mark.usefixtures("no_program")
class TestRounds:
    @pytest.mark.parametrize("uplink", ["delta", "weights"])
    @pytest.mark.parametrize("allocation", ["fp", "ptq", "qat", 0.5])
    def test_the_global_range_is_the_exact_mean_of_the_clients(
        self, allocation: Any, uplink: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With an aggregator that steps on parameters: ranges are none."""
        sent: list[tuple[StateDict, int]] = []
        opened = Link.open

        def remember(self: Link, payload: bytes, round_number: int, client_id: ClientId) -> PackedState:
            update = opened(self, payload, round_number, client_id)
            sent.append((ranges(decoded(update)), {0: 20, 1: 13, 2: 8, 3: 27}[int(client_id)]))
            return update

        monkeypatch.setattr(Link, "open", remember)
        there, _ = fit(
            **STATIC | {"max_rounds": 1},
            callbacks=FixedAllocator(allocation),
            uplink=uplink,
            aggregator=FedOpt(partial(torch.optim.Adam, lr=0.5)),
        )
        state = checkpoint(there)["state"]["global_state"]
        assert len(sent) == 8, "in the first round each waits for the others"
        del sent[4:]
        for name in ("net.0.fedhq_activation_range", "net.2.fedhq_activation_range"):
            mean = sum(update[name].double() * weight for update, weight in sent) / 68
            assert torch.equal(state[name], mean.float())
            assert is_calibrated(state[name])
            assert len({tuple(update[name].tolist()) for update, _ in sent}) == 4, "each from its own examples"

    def test_qat_learns_and_ptq_calibrates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What QAT clients send follows from what they received; what others send from their data alone."""
        moved = torch.tensor([-40.0, 40.0])
        train = ClientFitter._train

        def from_far(self: ClientFitter, round_number: int, client_id: ClientId, mode: Any, received: StateDict, *more):  # type: ignore[no-untyped-def]  # as the method
            return train(self, round_number, client_id, mode, received | {"net.2.fedhq_activation_range": moved}, *more)

        monkeypatch.setattr(ClientFitter, "_train", from_far)
        found = {
            mode: fit(**STATIC | {"max_rounds": 1}, uplink="weights", callbacks=FixedAllocator(mode))[1]
            for mode in ("ptq", "qat", "fp")
        }
        end = {mode: float(state["net.2.fedhq_activation_range"][1]) for mode, state in found.items()}
        assert end["ptq"] < 10, "calibrated anew"
        assert end["fp"] < 10
        assert 0 < abs(end["qat"] - 40) < 10, "learned: a few steps of about a hundredth of the span"

    def test_range_lr_of_zero_leaves_what_was_calibrated(self) -> None:
        states = [
            fit(**STATIC | {"max_rounds": rounds}, lanes=LaneOptions(range_lr=0.0), callbacks=FixedAllocator("qat"))[1]
            for rounds in (1, 3)
        ]
        assert same_bits(ranges(states[0]), ranges(states[1]))

    def test_accumulated_gradients_make_one_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        steps: list[int] = []

        class Counting(lane_fit.RangeLearner):
            @override
            def step(self) -> None:
                steps.append(1)
                super().step()

        monkeypatch.setattr(lane_fit, "RangeLearner", Counting)
        there, _ = fit(**STATIC | {"max_rounds": 1}, callbacks=FixedAllocator("qat"), accumulate_grad_batches=2)
        assert len(steps) == sum(client.num_steps for client in records(there)[1].clients)

    def test_before_the_first_round_ranges_are_dynamic(self) -> None:
        static, dynamic = (fit(max_rounds=1, scheme=scheme)[0] for scheme in ("w4a4s", "w4a4"))
        assert records(static)[0].metrics == records(dynamic)[0].metrics

    def test_calibration_costs_virtual_time(self) -> None:
        static, dynamic = (
            fit(max_rounds=1, scheme=scheme, callbacks=FixedAllocator(0.5))[0] for scheme in ("w4a4s", "w4a4")
        )
        for mine, other in zip(records(static)[1].clients, records(dynamic)[1].clients, strict=True):
            assert mine.mode == other.mode
            assert (mine.compute_seconds > other.compute_seconds) == (mine.mode == "ptq")

    def test_two_ranges_of_a_layer_that_is_used_twice_are_one(self) -> None:
        class Twice(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                shared = nn.Linear(16, 16)
                self.net = nn.Sequential(nn.Linear(12, 16), shared, nn.ReLU(), shared, nn.Linear(16, 3))

        _, state = fit(Twice(), **STATIC, callbacks=FixedAllocator(0.5))
        assert same_bits({"": state["net.1.fedhq_activation_range"]}, {"": state["net.3.fedhq_activation_range"]})

    def test_with_bias_correction(self) -> None:
        _, state = fit(**STATIC, callbacks=FixedAllocator("ptq"), lanes=LaneOptions(bias_correction=True))
        assert all(is_calibrated(value) for value in ranges(state).values())

    def test_a_state_dict_that_leaves_them_out_is_refused(self) -> None:
        class Bare(SmallModule):
            @override
            def state_dict(self, *args: Any, **kwargs: Any) -> Any:
                return {name: value for name, value in super().state_dict().items() if not is_range(name)}

        with pytest.raises(ConfigurationError, match=r"Bare\.state_dict leaves out net\.0\.fedhq_activation_range"):
            fit(Bare(), **STATIC)


@pytest.mark.usefixtures("no_report")
class TestAfterwards:
    def test_every_way_to_the_model_gives_the_deployed_views_metrics(self) -> None:
        module = Normed()
        there, _ = fit(module, max_rounds=3, scheme="w2a3s", callbacks=FixedAllocator(0.5), ema_decay=0.5)
        assert module.state_dict().keys() == Normed().state_dict().keys(), "the user's module stays the user's"
        best = there.summary["best_round"]
        logged = {name: value for name, value in records(there)[best].metrics.items() if not name.startswith("train")}
        assert there.validate() == logged
        for path in ("best", there.run_dir, there.run_dir / "checkpoints" / "best.ckpt"):
            assert there.validate(Normed(), SmallData(), ckpt_path=path) == logged
        program = torch.export.load(there.run_dir / "model" / "model.pt2").module()
        inputs = torch.randn(9, 12)
        predicted = there.predict(data=DataLoader(inputs, 9))[0]
        torch.testing.assert_close(program(inputs), predicted, rtol=0, atol=0)
        torch.testing.assert_close(program(inputs[:1]), predicted[:1], rtol=0, atol=0)
        loaded = Normed.load_from_checkpoint(there.run_dir / "checkpoints" / "best.ckpt")
        assert same_bits(loaded.state_dict(), module.state_dict())
        held = load_file(there.run_dir / "model" / "deployed_statistics.safetensors")
        assert {name for name in held if is_range(name)} == {
            "net.0.fedhq_activation_range",
            "net.3.fedhq_activation_range",
        }
        assert there.summary["layer_schemes"] == {"net.0": "w8a8s", "net.3": "w8a8s"}

    @pytest.mark.usefixtures("no_program")
    def test_layers_that_no_pass_reached_are_told(self) -> None:
        class Spare(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.spare = nn.Linear(16, 16)

        with pytest.warns(UserWarning, match=r"deployed with dynamic activation ranges: spare"):
            fit(Spare(), **STATIC, callbacks=FixedAllocator(0.5))

    @pytest.mark.usefixtures("no_program")
    def test_weights_without_ranges_are_not_deployed(self) -> None:
        there, _ = fit(**STATIC)
        with pytest.raises(ConfigurationError, match=r"these weights of SmallModule have none .*ckpt_path"):
            there.validate(SmallModule(lr=0.2))

    @pytest.mark.usefixtures("no_program")
    def test_a_checkpoint_with_ranges_is_evaluated_under_a_dynamic_scheme(self) -> None:
        there, _ = fit(**STATIC)
        dynamic, _ = fit(**STATIC | {"scheme": "w4a4"})
        found = dynamic.validate(SmallModule(), SmallData(), ckpt_path=there.run_dir)
        assert found["fp/val_loss"] == there.validate()["fp/val_loss"]


def test_killed_and_on_two_processes_and_evaluated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With batch normalization whose statistics are retaken, both modes in each round: the same bits."""
    changes = NORMED | {"trainer.scheme": "w3a4s", "trainer.lanes": {"qat_kernel": "int8"}}
    folders = run_three_ways(tmp_path, changes, monkeypatch)
    states, files = [], []
    for folder in folders:
        states.append(load_checkpoint(folder / "checkpoints" / "round-000003.ckpt")["state"]["global_state"])
        parts = ("weights.safetensors", "deployed_statistics.safetensors")
        files.append([(folder / "model" / part).read_bytes() for part in parts])
    assert len(ranges(states[0])) == 2
    assert "quantized/layers.2.running_mean" in states[0]
    assert same_bits(states[0], states[1])
    assert same_bits(states[0], states[2])
    assert files[0] == files[1] == files[2]
    found = evaluate_model(folders[-1])
    assert found.is_conversion, "model.pt2 is what weights, statistics and ranges convert to, bit for bit"


class TestRefused:
    @pytest.mark.parametrize("scheme", ["w4a8s", QuantScheme("w4a8", overrides={"net.0": "w8a8s"})], ids=str)
    @pytest.mark.parametrize("callback", [QuantizedTraining, FederatedAveraging])
    def test_in_lightnings_trainer(self, callback: type, scheme: Any) -> None:
        wanted = rf"{callback.__name__}: scheme '{scheme}' has static activation ranges.*leave the s"
        with pytest.raises(ConfigurationError, match=wanted):
            callback(scheme=scheme)
