"""Layers that stay on the client, against plain loops in float64, and whatever else must hold for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedDyn, FedOpt, FedProx, Scaffold
from fedhq_lightning.federated.personal.personal_layers import PersonalLayers
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.client_store import PERSONAL
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import StateDict

from ...small_federation import SmallData, SmallModule, same_bits
from ...three_ways import NORMED, run_three_ways
from ...trainer.runs import checkpoint, fit, records
from ..algorithms.plain_rounds import Weights, batches, initial_weights, mean, plus

RATE, EPOCHS = 0.2, 2
HEAD = ("net.2.weight", "net.2.bias")
NAMES = [name for name, _ in SmallModule().named_parameters()]


class Normed(SmallModule):
    """With a layer between the first two that keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(16))


def own(run: FederatedTrainer | Path, position: int) -> StateDict:
    """What a client holds of its own after the last round."""
    path = run if isinstance(run, Path) else run.run_dir
    return RunDirectory(path).client_store.load(position, 1000).get(PERSONAL, {})


def by_the_paper(cohorts: list[list[int]], data: SmallData, first: float | None) -> tuple[Weights, dict[int, Weights]]:
    """Rounds in which the heads are the clients' own, and train before the body where there is a share for that."""
    is_head = [name in HEAD for name in NAMES]
    shared, heads = initial_weights(), dict[int, Weights]()
    for number, cohort in enumerate(cohorts, start=1):
        ends = []
        for client in cohort:
            mine = heads.get(client, initial_weights())
            weights = [own if head else each for own, each, head in zip(mine, shared, is_head, strict=True)]
            steps = list(batches(data, 0, number, client, EPOCHS))
            for step, gradients in enumerate(steps):
                moved = plus(weights, gradients(weights), -RATE)
                turn = None if first is None else step < round(first * len(steps))
                weights = [
                    new if turn is None or head == turn else old
                    for new, old, head in zip(moved, weights, is_head, strict=True)
                ]
            heads[client] = weights
            ends.append(weights)
        examples = sum(data.sizes[client] for client in cohort)
        shared = mean(ends, [data.sizes[client] / examples for client in cohort])
    return shared, heads


def assert_near(found: StateDict, wanted: Weights, names: Any) -> None:
    for name, value in zip(NAMES, wanted, strict=True):
        if name in names:
            torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("first", [None, 0.5])
def test_is_the_papers(first: float | None) -> None:
    module, data = SmallModule(lr=RATE, momentum=0.0), SmallData()
    done, state = fit(
        *(module, data),
        personal_layers=PersonalLayers("net.2", first),
        max_rounds=4,
        clients_per_round=2,
        local_epochs=EPOCHS,
    )
    cohorts = [[int(client.client_id) for client in record.clients] for record in records(done)[1:]]
    shared, heads = by_the_paper(cohorts, data, first)
    assert_near(state, shared, set(NAMES) - set(HEAD))
    for client, weights in heads.items():
        assert own(done, client).keys() == set(HEAD)
        assert_near(own(done, client), weights, HEAD)


class TestOnTheWire:
    def test_they_go_down_once_and_never_up(self) -> None:
        head = 4 * sum(SmallModule().state_dict()[name].numel() for name in HEAD)
        done, plain = (fit(max_rounds=2, personal_layers=layers)[0] for layers in ("net.2", None))
        for number, extra_down in ((1, 0), (2, -head)):
            for less, more in zip(records(done)[number].clients, records(plain)[number].clients, strict=True):
                assert less.uplink_bytes <= more.uplink_bytes - head
                assert less.downlink_bytes <= more.downlink_bytes + extra_down + 1000 * (number == 1)

    def test_the_server_has_those_of_the_initial_model_for_ever(self) -> None:
        state = fit(personal_layers=["net.2.*"])[1]
        initial = SmallModule().state_dict()
        assert same_bits({name: state[name] for name in HEAD}, {name: initial[name] for name in HEAD})
        assert not torch.equal(state["net.0.weight"], initial["net.0.weight"])

    def test_clients_that_never_took_part_have_nothing(self) -> None:
        done, _ = fit(SmallModule(), SmallData([8] * 30), clients_per_round=3, personal_layers="net.2")
        took_part = {client.client_id for record in records(done) for client in record.clients}
        assert {int(each.name) for each in done.run_dir.glob("client_state/*")} == took_part


class TestNames:
    @pytest.mark.parametrize(
        "patterns", ["net.2", "net.2.*", ["net.2.weight", "net.2.bias"], PersonalLayers(["*.2"]), ["net.[2-9]"]]
    )
    def test_are_those_of_tensors_layers_and_what_holds_them(self, patterns: Any) -> None:
        assert own(fit(max_rounds=1, personal_layers=patterns)[0], 0).keys() == set(HEAD)

    def test_batch_norm_is_all_of_them_with_their_statistics(self) -> None:
        done, _ = fit(Normed(), max_rounds=1, personal_layers="batch_norm")
        parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        assert own(done, 0).keys() == {f"net.1.{part}" for part in parts}
        assert own(done, 0)["net.1.num_batches_tracked"] == 3

    def test_a_tied_tensor_is_personal_by_all_its_names(self) -> None:
        class Tied(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.head = self.net[2]

        done, state = fit(Tied(), personal_layers="head")
        assert own(done, 0).keys() == {*HEAD, "head.weight", "head.bias"}
        assert torch.equal(state["net.2.weight"], Tied().state_dict()["net.2.weight"])

    @pytest.mark.parametrize(
        ("patterns", "message"),
        [
            ("heads.*", r"personal_layers 'heads\.\*': matches no layer and no tensor of SmallModule; its layers are"),
            ("net.3", r"its layers are net\.0, net\.2, and 'batch_norm' .*; did you mean 'net\.2'\?"),
            ("net", "they are the whole model"),
            ("batch_norm", "SmallModule has no BatchNorm layer"),
            ([], r"personal_layers \[\]: must be patterns of names"),
            ([3], r"personal_layers \[3\]: must be patterns of names"),
        ],
    )
    def test_what_cannot_be_is_refused(self, patterns: Any, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            fit(personal_layers=patterns)

    @pytest.mark.parametrize("first", [0.0, 1.0, 2, "half"])
    def test_a_share_is_between_none_and_all(self, first: Any) -> None:
        with pytest.raises(ConfigurationError, match="must be a share of the local steps"):
            PersonalLayers("net.2", first)

    def test_what_is_frozen_is_nobodys_own(self) -> None:
        module = SmallModule()
        module.net[2].requires_grad_(False)
        with pytest.raises(ConfigurationError, match="what they name is frozen"):
            fit(module, personal_layers="net.2")


def test_the_server_has_no_model_to_monitor() -> None:
    with pytest.raises(ConfigurationError, match=r"'val_accuracy': with personal_layers .*clients/val_accuracy/mean"):
        fit(personal_layers="net.2", monitor="val_accuracy")


class TestWithAlgorithms:
    @pytest.mark.parametrize(
        "aggregator",
        [FedProx(0.5), Scaffold(), FedDyn(), FedOpt(torch.optim.Adam)],
        ids=lambda each: type(each).__name__,
    )
    def test_only_what_is_shared_is_theirs(self, aggregator: Any) -> None:
        done, state = fit(max_rounds=3, personal_layers="net.2", aggregator=aggregator)
        initial = SmallModule().state_dict()
        assert torch.equal(state["net.2.weight"], initial["net.2.weight"])
        assert not torch.equal(own(done, 0)["net.2.weight"], initial["net.2.weight"])
        kept = RunDirectory(done.run_dir).client_store.load(0, 1000)
        assert set(kept.get("term", {})) <= set(NAMES) - set(HEAD)

    def test_a_head_is_not_held_back_to_where_it_began(self) -> None:
        """With a mu this large the body stays, and the head learns all the same."""
        done, state = fit(SmallModule(lr=1e-3, momentum=0.0), personal_layers="net.2", aggregator=FedProx(500.0))
        free, _ = fit(SmallModule(lr=1e-3, momentum=0.0), personal_layers="net.2", aggregator=FedProx(0.0))
        body, initial = state["net.0.weight"], SmallModule().state_dict()

        def moved(run: FederatedTrainer) -> Tensor:
            return (own(run, 0)["net.2.bias"] - initial["net.2.bias"]).norm()

        assert moved(done) > 0.9 * moved(free)
        assert (body - initial["net.0.weight"]).norm() < (last(free)["net.0.weight"] - initial["net.0.weight"]).norm()


def last(run: FederatedTrainer) -> StateDict:
    state: StateDict = checkpoint(run)["state"]["global_state"]
    return state


@pytest.mark.parametrize("scheme", ["w4a8", "w4a8s"])
@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_quantized_lanes_train_them_too(scheme: str, mode: str) -> None:
    done, state = fit(personal_layers="net.2", scheme=scheme, callbacks=[FixedAllocator(mode)], max_rounds=3)
    initial, held = SmallModule().state_dict(), own(done, 0)
    assert not torch.equal(held["net.2.weight"], initial["net.2.weight"])
    assert torch.equal(state["net.2.weight"], initial["net.2.weight"])
    ranges = {"net.2.fedhq_activation_range"} if scheme.endswith("s") else set()
    assert held.keys() == {*HEAD, *ranges}
    for name in ranges:
        assert held[name].diff() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer.personal_layers": ["layers.4"], "trainer.scheme": "w4a8"},
        {"trainer.personal_layers": {"names": "batch_norm", "first": 0.5}, "trainer.scheme": "w4a8"},
    ],
    ids=["head", "batch norm"],
)
def test_bits_are_the_same_on_two_processes_and_after_an_interruption(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = run_three_ways(tmp_path, NORMED | {"trainer.monitor": None} | changes, monkeypatch)
    states = [load_checkpoint(RunDirectory.of_checkpoint(each)[1])["state"]["global_state"] for each in folders]
    kept = [sorted(each.relative_to(folder) for each in folder.glob("client_state/*/*")) for folder in folders]
    for folder, state, files in zip(folders[1:], states[1:], kept[1:], strict=True):
        assert same_bits(states[0], state)
        assert kept[0] == files
        for file in files:
            assert (folders[0] / file).read_bytes() == (folder / file).read_bytes()
