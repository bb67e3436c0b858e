"""Parts of a federation of silos, without processes."""

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import nn
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedAvg, FedOpt
from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.quantize import QuantScheme
from fedhq_lightning.silos import silo_checkpoint, silo_strategy
from fedhq_lightning.silos.batch_examples import examples_in
from fedhq_lightning.silos.first_weights import share_first_weights
from fedhq_lightning.silos.silo_context import SiloFacts, drawn_examples, label_counts, warn_of_same_data
from fedhq_lightning.silos.silo_rounds import Limits, SiloRound, Work, frozen_names, put, snapshot
from fedhq_lightning.support.collectives import Processes

from ..small_federation import same_bits


class _Alone(LightningEnvironment):
    def local_rank(self) -> int:
        return 0


class Tied(nn.Module):
    """Two names for one tensor, statistics, a counter, a mask, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.norm, self.fixed = nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.fixed.requires_grad_(False)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))


def work(*examples: int) -> list[Work]:
    return [Work(count, 1, 0.1) for count in examples]


def idle(given: list[Work]) -> list[Work]:
    return [replace(each, is_idle=not each.num_examples) for each in given]


def changed(by: float) -> Tied:
    module = Tied()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += by
        module.norm.running_mean += by
        module.norm.num_batches_tracked += 5
    return module


def a_round(**settings: Any) -> SiloRound:
    start = Tied()
    given: dict[str, Any] = {"grids": {}, "uplink": "weights"} | settings
    return SiloRound(1, snapshot(start), frozen_names(start), **given)


class TestRound:
    def test_a_silo_counts_with_no_more_examples_than_it_can_have(self) -> None:
        this_round = a_round()
        payloads = [this_round.encode(changed(by), rank) for rank, by in enumerate((0.3, 0.2, 0.1))]
        limits = Limits.of(20.0, [50, 50, 50], num_epochs=2)
        found = this_round.aggregate(Tied(), payloads, work(100, 2**29, 100), FedAvg(), limits=limits)
        assert found.refused == {1: "it claims 536870912 examples, and can have 200 at most"}
        honest = this_round.aggregate(Tied(), [payloads[0], b"", payloads[2]], idle(work(100, 0, 100)), FedAvg())
        assert same_bits(found.state, honest.state)

    def test_a_silo_that_goes_too_far_is_left_out(self) -> None:
        this_round = a_round()
        payloads = [this_round.encode(changed(by), rank) for rank, by in enumerate((0.3, 0.2, 0.1, 90.0))]
        given = [Tied(), payloads, work(100, 100, 100, 100), FedAvg()]
        found = this_round.aggregate(*given, limits=Limits.of(20.0, [100] * 4, 1))
        assert list(found.refused) == [3]
        assert not this_round.aggregate(*given, limits=Limits.of(None, [100] * 4, 1)).refused
        usual = [found.usual_norms.parameters * 100, found.usual_norms.buffers * 100]
        assert not this_round.aggregate(*given, limits=Limits.of(20.0, [100] * 4, 1), usual_norms=usual).refused

    @pytest.mark.parametrize("uplink", ["weights", "delta"])
    def test_is_the_exact_weighted_mean(self, uplink: str) -> None:
        silos, this_round = [changed(0.3), changed(-0.7)], a_round(uplink=uplink)
        payloads = [this_round.encode(module, rank) for rank, module in enumerate(silos)]
        found = this_round.aggregate(silos[0], payloads, work(3, 8), FedAvg())
        total = ExactMean()
        for module, weight in zip(silos, (3, 8), strict=True):
            total.add({"norm.running_mean": module.norm.running_mean}, weight)
        mean, _ = total.mean(Processes(None))
        if uplink == "weights":
            assert same_bits({"norm.running_mean": found.state["norm.running_mean"]}, mean)
        torch.testing.assert_close(found.state["norm.running_mean"], mean["norm.running_mean"])
        assert found.state["embed.weight"] is not silos[0].embed.weight
        assert torch.equal(found.state["embed.weight"], found.state["head.weight"])
        assert torch.equal(found.state["fixed.weight"], Tied().fixed.weight)
        assert found.state["norm.num_batches_tracked"] == 0
        assert not found.refused

    def test_every_silo_finds_the_same_whatever_it_holds(self) -> None:
        silos, this_round = [changed(0.3), changed(-0.7)], a_round()
        payloads = [this_round.encode(module, rank) for rank, module in enumerate(silos)]
        states = [this_round.aggregate(module, payloads, work(3, 8), FedAvg()).state for module in silos]
        for module, state in zip(silos, states, strict=True):
            put(module, state)
        assert same_bits(snapshot(silos[0]), snapshot(silos[1]))
        assert silos[0].head.weight is silos[0].embed.weight

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda payload: payload[:-3] + b"abc", "checksum"),
            (lambda payload: b"", "header"),
            (lambda payload: a_round().encode(changed(0.1), 0), "client is '0', expected '1'"),
            (lambda payload: a_round().encode(changed(float("nan")), 1), "not finite"),
            (lambda payload: a_round().encode(changed(1e12), 1), "and more"),
        ],
    )
    def test_a_spoilt_update_is_left_out(self, spoil: Any, words: str) -> None:
        this_round, module = a_round(), changed(0.25)
        payloads = [this_round.encode(module, 0), spoil(this_round.encode(changed(0.5), 1))]
        found = this_round.aggregate(module, payloads, work(3, 8), FedAvg())
        assert list(found.refused) == [1]
        assert words in found.refused[1]
        assert torch.equal(found.state["embed.weight"], module.embed.weight)

    def test_without_any_update_the_model_stays(self) -> None:
        this_round, module = a_round(), changed(float("inf"))
        found = this_round.aggregate(module, [this_round.encode(module, 0)], work(3), FedAvg())
        assert same_bits(found.state, this_round.received)

    def test_a_silo_that_saw_nothing_is_left_out(self) -> None:
        this_round, module = a_round(), changed(0.25)
        payloads = [this_round.encode(module, rank) for rank in (0, 1)]
        found = this_round.aggregate(module, payloads, work(3, 0), FedAvg())
        assert found.refused == {1: "it saw no example in this round"}

    def test_what_hooks_changed_without_gradients_travels_from_all(self) -> None:
        """Whoever changed it: all silos send the same tensors; and it is no trained parameter."""
        silos, rounds = [changed(0.3), changed(-0.7)], [a_round(), a_round()]
        with torch.no_grad():
            silos[1].fixed.weight += 4
        told = [replace(each, changed=one.changed(m)) for each, one, m in zip(work(1, 3), rounds, silos, strict=True)]
        assert [list(each.changed) for each in told] == [[], ["fixed.weight"]]
        for each in rounds:
            each.agree(told)
        payloads = [one.encode(module, rank) for rank, (one, module) in enumerate(zip(rounds, silos, strict=True))]
        step = FedOpt(partial(torch.optim.SGD, lr=0.5))
        found = rounds[0].aggregate(silos[0], payloads, told, step)
        assert not found.refused
        torch.testing.assert_close(found.state["fixed.weight"], Tied().fixed.weight.detach() + 3)
        assert torch.equal(found.state["fixed.bias"], Tied().fixed.bias)

    def test_an_idle_silo_is_left_out_without_blame(self) -> None:
        this_round, module = a_round(), changed(0.25)
        told = [*work(3), Work(0, 0, 0.1, is_idle=True)]
        found = this_round.aggregate(module, [this_round.encode(module, 0), b""], told, FedAvg())
        assert not found.refused
        assert torch.equal(found.state["embed.weight"], module.embed.weight)

    def test_what_thaws_within_the_round_travels(self) -> None:
        this_round, module = a_round(), changed(0.0)
        module.fixed.requires_grad_(True)
        with torch.no_grad():
            module.fixed.weight += 1
        found = this_round.aggregate(module, [this_round.encode(module, 0)], work(3), FedAvg())
        assert torch.equal(found.state["fixed.weight"], module.fixed.weight)

    def test_weights_travel_on_the_grid(self) -> None:
        scheme = QuantScheme("w4a8", edge_bits=None)
        module = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
        grids = {f"{name}.weight": grid for name, grid in scheme.for_layers(module).items()}
        this_round = SiloRound(1, snapshot(module), frozenset(), grids, "weights")
        payload = this_round.encode(module, 0)
        found = this_round.aggregate(module, [payload], work(3), FedAvg())
        assert len(found.state["1.weight"][0].unique()) <= 16
        assert not torch.equal(found.state["1.weight"], module[1].weight)


class TestCheckpoint:
    def test_a_silo_gets_its_own_part_back(self) -> None:
        def dumped(rank: int) -> dict[str, Any]:
            return {
                "state_dict": {"w": torch.ones(2)},
                "epoch": 3,
                "loops": {"step": 10 + rank},
                "optimizer_states": [{"m": torch.full((2,), float(rank))}],
                "callbacks": {"FederatedAveraging": {"round": 3}, "Other": {"mine": rank}},
                "hyper_parameters": {"lr": 0.1},
            }

        parts = [
            silo_checkpoint.packed(silo_checkpoint.own_part(dumped(rank), ["FederatedAveraging"])) for rank in (0, 1)
        ]
        for rank in (0, 1):
            checkpoint = dumped(0)
            silo_checkpoint.add_parts(checkpoint, parts)
            assert silo_checkpoint.take_part(checkpoint, rank, 2) == {}
            assert checkpoint["loops"] == {"step": 10 + rank}
            assert torch.equal(checkpoint["optimizer_states"][0]["m"], torch.full((2,), float(rank)))
            assert checkpoint["callbacks"] == {"FederatedAveraging": {"round": 3}, "Other": {"mine": rank}}

    def test_an_ordinary_one_has_no_parts(self) -> None:
        assert silo_checkpoint.take_part({"state_dict": {}}, 0, 2) is None

    def test_another_number_of_silos_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="is of 1 silos, this run has 2"):
            silo_checkpoint.take_part({silo_checkpoint.KEY: [torch.zeros(1, dtype=torch.uint8)]}, 0, 2)

    @pytest.mark.parametrize("parts", [3, {}, [b"x"], [torch.zeros(3)], "text"])
    def test_no_parts_of_silos(self, parts: Any) -> None:
        with pytest.raises(ConfigurationError, match="holds no parts of silos under 'fedhq_silos'"):
            silo_checkpoint.take_part({silo_checkpoint.KEY: parts}, 0, 1)

    @pytest.mark.parametrize(
        "part", [[1], {"callbacks": 3}, {silo_checkpoint.KEY: "x"}, {silo_checkpoint.KEY: {"model": {}}}]
    )
    def test_a_part_that_no_silo_wrote(self, part: Any) -> None:
        buffer = io.BytesIO()
        torch.save(part, buffer)
        checkpoint: dict[str, Any] = {}
        silo_checkpoint.add_parts(checkpoint, [b"x", buffer.getvalue()])
        with pytest.raises(ConfigurationError, match="the part of silo 1 in the checkpoint is not what a silo writes"):
            silo_checkpoint.take_part(checkpoint, 1, 2)
        with pytest.raises(
            ConfigurationError, match=r"the part of silo 0 in the checkpoint holds more than .* or is damaged"
        ):
            silo_checkpoint.take_part(checkpoint, 0, 2)

    def test_objects_in_a_part_are_made_only_where_it_is_trusted(self) -> None:
        checkpoint: dict[str, Any] = {}
        silo_checkpoint.add_parts(checkpoint, [silo_checkpoint.packed({"callbacks": {"Mine": Path("here")}})])
        for told in (None, True):
            with pytest.raises(ConfigurationError, match=r"the part of silo 0 .*fit\(\.\.\., weights_only=False\)"):
                silo_checkpoint.take_part(dict(checkpoint), 0, 1, told)
        silo_checkpoint.take_part(checkpoint, 0, 1, False)
        assert checkpoint["callbacks"] == {"Mine": Path("here")}


class TestData:
    def test_labels_are_counted_by_name(self) -> None:
        data = TensorDataset(torch.zeros(5, 2), torch.tensor([2, 0, 2, 2, 1]))
        assert label_counts(data) == {"2": 3, "0": 1, "1": 1}
        assert label_counts(Subset(data, [0, 1])) == {"2": 1, "0": 1}

    def test_labels_are_counted_of_what_the_sampler_draws(self) -> None:
        data = TensorDataset(torch.zeros(5, 2), torch.tensor([2, 0, 2, 1, 2]))
        for sampler, counts in ((SubsetRandomSampler([0, 1]), {"2": 1, "0": 1}), (None, {"2": 3, "0": 1, "1": 1})):
            assert label_counts(drawn_examples(DataLoader(data, 2, sampler=sampler))) == counts

    @pytest.mark.parametrize("labels", [torch.full((5,), 0.5), None])
    def test_what_is_no_class_is_not_told(self, labels: torch.Tensor | None) -> None:
        tensors = (torch.zeros(5, 2),) if labels is None else (torch.zeros(5, 2), labels)
        assert label_counts(TensorDataset(*tensors)) is None

    def test_silos_with_the_same_data_are_told(self) -> None:
        def facts(count: int, fingerprint: str) -> SiloFacts:
            return SiloFacts(count, 8, None, [], "", {}, fingerprint)

        warn_of_same_data([facts(3, "aa"), facts(4, "aa"), facts(3, "bb"), facts(3, ""), facts(3, "")])
        with pytest.warns(UserWarning, match=r"silos 0, 2 begin with the same batch.*self.trainer.global_rank"):
            warn_of_same_data([facts(3, "aa"), facts(4, "bb"), facts(3, "aa")])

    def test_examples_in_a_batch(self) -> None:
        assert examples_in({"x": torch.zeros(7, 2)}) == 7
        loader = torch.utils.data.DataLoader(list(range(9)), batch_size=3)
        assert examples_in(object(), [loader]) == 3
        assert examples_in(object()) == 1


def test_one_silo_talks_to_nobody() -> None:
    processes = Processes(torch.device("cpu"))
    assert processes.gather_bytes(b"abc") == [b"abc"]
    assert processes.gather_bytes_on_first(b"") == [b""]
    assert processes.broadcast({"a": 1.5}) == {"a": 1.5}
    share_first_weights(nn.Linear(2, 2), processes)


def test_other_numbers_of_loaders_are_refused_before_anybody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own sums, one a loader, would wait for silos that have fewer."""

    class Told(Processes):
        def gather(self, value: Any) -> list[Any]:
            return [value, 1]

    monkeypatch.setattr(silo_strategy, "Processes", Told)
    strategy = silo_strategy.silo_strategy_on(silo_strategy.DDPStrategy)(
        parallel_devices=[torch.device("cpu")], cluster_environment=_Alone()
    )
    monkeypatch.setattr(silo_strategy.DDPStrategy, "reduce", lambda self, tensor, *_: tensor)
    strategy.process_dataloader([])
    assert strategy.reduce(3) == 3
    for _ in range(2):
        strategy.process_dataloader([])
    with pytest.raises(ConfigurationError, match="silos have 2, 1 loaders"):
        strategy.reduce(3)
