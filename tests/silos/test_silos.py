"""Two silos with 3 and 7 batches, in two processes: rounds, lanes, checkpoints, and ends of every kind."""

import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fedhq_lightning.federated.exact_mean import ExactMean
from fedhq_lightning.federated.payload import read_metadata
from fedhq_lightning.federated.seals import NUM_SEAL_BYTES
from fedhq_lightning.run.records import read_rounds
from fedhq_lightning.silos import silo_checkpoint
from fedhq_lightning.support.collectives import Processes

from ..keys import write_keys
from ..logs_everywhere import Note
from ..small_federation import same_bits
from .logged_by_hand import expected, last_of
from .silo_runs import run_script
from .silo_script import SIZES, Plain, examples


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("by_hand")
    write_keys(folder / "keys", (0, 1))
    write_keys(folder / "wrong-keys", (0, 1))
    (folder / "wrong-keys" / "1.key").write_bytes((folder / "keys" / "1.key").read_bytes())
    done = run_script(folder, str(folder), "by_hand")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    done = run_script(folder, str(folder), "quantized")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def left(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]


def computed_by_hand(rounds: int) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """FedAvg of two plain loops that keep their optimizers; also the last momentum buffers."""
    modules = [Plain(), Plain()]
    optimizers = [module.configure_optimizers() for module in modules]
    for _ in range(rounds):
        start = {name: value.clone() for name, value in modules[0].state_dict().items()}
        total = ExactMean()
        for rank, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
            for batch in DataLoader(examples(SIZES[rank], 1 + rank), batch_size=8):
                optimizer.zero_grad()
                module.training_step(batch, 0).backward()
                optimizer.step()
            floats = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
            total.add(floats, SIZES[rank])
        following = start | total.mean(Processes(None))[0]
        for module in modules:
            module.load_state_dict(following)
    return dict(modules[0].state_dict()), [optimizer.state_dict()["state"] for optimizer in optimizers]


class TestByHand:
    def test_equals_plain_loops_averaged_exactly(self, by_hand: Path) -> None:
        state, momenta = computed_by_hand(rounds=3)
        for rank, found in enumerate(left(by_hand, "first")):
            assert same_bits(dict(found["state"]), state)
            assert found["steps"] == 3 * SIZES[rank] // 8
            for key, value in momenta[rank].items():
                assert torch.equal(found["optimizer"]["state"][key]["momentum_buffer"], value["momentum_buffer"])

    def test_two_runs_are_alike_sealed_or_not(self, by_hand: Path) -> None:
        for first, again in zip(left(by_hand, "first"), left(by_hand, "again"), strict=True):
            assert same_bits(dict(first["state"]), dict(again["state"]))

        sent = [list(read_rounds(by_hand / name / "rounds.jsonl")) for name in ("first", "again")]
        for plain, sealed in zip(*sent, strict=True):
            assert sealed.uplink_bytes == plain.uplink_bytes + 2 * NUM_SEAL_BYTES

    def test_a_silo_whose_seal_is_wrong_is_left_out(self, by_hand: Path) -> None:
        for record in read_rounds(by_hand / "forged" / "rounds.jsonl"):
            first, second = record.clients
            assert (first.status, second.status) == ("ok", "quarantined")
            assert second.reason == "its seal is not one of client 1 for this run"

    def test_a_silo_that_is_not_finite_is_left_out_and_heals(self, by_hand: Path) -> None:
        first, second = left(by_hand, "breaks")
        assert same_bits(dict(first["state"]), dict(second["state"]))
        assert all(bool(value.isfinite().all()) for value in first["state"].values())
        (warned,) = [each for each in first["warnings"] if "quarantined" in each]
        assert warned == "round 2: silo 1 is quarantined: the update holds values that are not finite"
        records = list(read_rounds(by_hand / "breaks" / "rounds.jsonl"))
        assert [[client.status for client in record.clients] for record in records] == [
            ["ok", "ok"],
            ["ok", "quarantined"],
            ["ok", "ok"],
        ]

    def test_a_silo_that_skips_its_batches_is_idle_and_counts_nothing(self, by_hand: Path) -> None:
        """After the second round everybody has the model of silo 0, statistics too; nobody trains in the third."""
        state, _ = computed_by_hand(rounds=1)
        module = Plain()
        optimizer = module.configure_optimizers()
        for start in (module.state_dict(), state):
            module.load_state_dict(start)
            for batch in DataLoader(examples(SIZES[0], 1), batch_size=8):
                optimizer.zero_grad()
                module.training_step(batch, 0).backward()
                optimizer.step()
        counters = {name: value for name, value in state.items() if not value.is_floating_point()}
        for found in left(by_hand, "skips"):
            assert same_bits(dict(found["state"]), dict(module.state_dict()) | counters)
        records = list(read_rounds(by_hand / "skips" / "rounds.jsonl"))
        assert [[client.status for client in record.clients] for record in records] == [
            ["ok", "ok"],
            ["ok", "idle"],
            ["idle", "idle"],
        ]
        idle = records[1].clients[1]
        assert (idle.uplink_bytes, idle.num_steps, idle.num_examples) == (0, 0, 0)
        assert idle.downlink_bytes == records[1].clients[0].uplink_bytes
        assert records[1].metrics["train/loss"] == records[1].clients[0].metrics["loss"]
        said = [each for each in left(by_hand, "skips")[0]["warnings"] if each.startswith("round ")]
        assert [each.split(" silos took no step")[0] for each in said] == [
            "round 2: 1 of 2",
            "round 3: no usable update arrived; the global model stays as it is",
        ]

    @pytest.mark.parametrize(("name", "epochs", "rounds"), [("stopped", 2, 1), ("told", 4, 2), ("late", 2, 1)])
    def test_a_fit_that_stops_within_a_round_ends_with_one_model(
        self, by_hand: Path, name: str, epochs: int, rounds: int
    ) -> None:
        first, second = left(by_hand, name)
        assert same_bits(dict(first["state"]), dict(second["state"]))
        assert first["epochs"] == second["epochs"] == epochs
        assert first["metrics"]["fedhq/round"] == second["metrics"]["fedhq/round"] == rounds

    def test_the_silo_that_asked_to_stop_stopped_at_once(self, by_hand: Path) -> None:
        assert [found["steps"] for found in left(by_hand, "told")] == [3 * 3 + 2, 4 * 7]

    def test_silos_part_before_their_processes_end(self, by_hand: Path) -> None:
        """What is left of gloo may abort a process on its way out."""
        assert [json.loads((by_hand / f"group-{rank}.json").read_text()) for rank in (0, 1)] == [False, False]

    @pytest.mark.parametrize("stage", ["train", "validation", "test"])
    def test_whatever_is_logged_on_an_epoch_is_averaged(self, by_hand: Path, stage: str) -> None:
        """From every hook and in every way, as EarlyStopping and checkpoints find it."""
        left_behind = left(by_hand, "said")
        said = [[Note(*note) for note in each["said"]] for each in left_behind]
        looks = [[values for when, values in each["found"] if when == stage] for each in left_behind]
        for epoch in (0, 1) if stage != "test" else (2,):
            wanted = expected(said, stage, epoch)
            for rank, found in enumerate(each.pop(0) for each in looks):
                kept = {"only_on_last", "rank_zero_only"} - {"rank_zero_only" if rank == 0 else "only_on_last"}
                names = {name for name in wanted if name.split("/")[2] not in kept}
                assert {name: found.get(name) for name in names} == pytest.approx(
                    {name: wanted[name] for name in names}, rel=1e-6
                )
                assert not found.keys() & (wanted.keys() - names)
        assert not any(looks)

    def test_what_is_logged_on_a_step_alone_stays_the_silos_own(self, by_hand: Path) -> None:
        for each in left(by_hand, "said"):
            said = [Note(*note) for note in each["said"]]
            found = [values["module/step_alone"] for when, values in each["found"] if when == "train"]
            assert found == [last_of(said, "on_train_batch_end", epoch) for epoch in (0, 1)]

    def test_what_is_tested_is_what_trainer_test_returns(self, by_hand: Path) -> None:
        for each in left(by_hand, "said"):
            found = next(values for when, values in each["found"] if when == "test")
            assert {name: found[name] for name in each["tested"][0]} == each["tested"][0]

    def test_callbacks_act_alike_on_what_hooks_after_validation_log(self, by_hand: Path) -> None:
        """EarlyStopping, ModelCheckpoint and ReduceLROnPlateau; the silos' means weigh 20 and 40 examples."""
        scores = [(20 * first + 40 * second) / 60 for first, second in ((0.0, 0.5), (0.1, 0.9), (0.2, 0.7), (0.3, 0.3))]
        best = [torch.load(by_hand / f"watched-best-{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert best[0] == best[1]
        assert best[0]["score"] == pytest.approx(scores[1])
        assert Path(best[0]["path"]).name == f"epoch=1-score={scores[1]:.3f}.ckpt"
        assert Path(best[0]["path"]).exists()
        assert best[0]["tested"]["tested"] == pytest.approx(1 + 40 / 60)
        for found in left(by_hand, "watched"):
            assert found["epochs"] == 4
            assert found["metrics"]["score"] == pytest.approx(scores[3])
            assert found["optimizer"]["param_groups"][0]["lr"] == 0.1 / 4

    def test_metrics_of_particular_kinds(self, by_hand: Path) -> None:
        first, second = left(by_hand, "watched")
        own = {"train_loss", "asks_in_a_step", "of_one"}
        for found in (first["metrics"], second["metrics"]):
            assert found["computed"] == pytest.approx(5 / 8)  # synchronized by hand: 3 batches of 0 and 5 of 1
            assert found["twice"] == pytest.approx(2 + 40 / 60)  # as in Lightning, the later hook's
            assert found["apart"] == pytest.approx(
                2 + 40 / 60
            )  # keeps its states to itself, so its values are averaged
            assert math.isnan(found["loss_of_one_is_lost"])
            assert math.isnan(found["largest"])
            assert found["number"] == 12
        agreed = [{k: repr(v) for k, v in found["metrics"].items() if k not in own} for found in (first, second)]
        assert agreed[0] == agreed[1]
        assert "of_one" not in first["metrics"]
        assert second["metrics"]["of_one"] == 4
        assert any("'on_validation_epoch_end.of_one' by 1 of 2 silos" in each for each in first["warnings"])
        assert first["metrics"]["asks_in_a_step"] != second["metrics"]["asks_in_a_step"]

    def test_monitors_of_what_every_silo_has_its_own_value_of_are_refused(self, by_hand: Path) -> None:
        first, second = (json.loads((by_hand / f"refused-{rank}.json").read_text()) for rank in (0, 1))
        assert first == second
        assert first[0].startswith("ModelCheckpoint looks at 'train_loss', of which every silo has a value of its own")
        assert first[1].startswith("EarlyStopping looks at 'of_one', of which every silo has a value of its own (none,")


class TestQuantized:
    def test_validation_sees_the_global_model_in_fp(self, quantized: Path) -> None:
        first, second = left(quantized, "unbroken")
        assert len(first["seen"]) == 4
        assert first["seen"] == second["seen"]
        assert first["seen"][3] == float(sum(value.double().sum() for value in first["state"].values()))
        assert {"Linear", "BatchNorm1d"} <= set(first["kinds"]) & set(second["kinds"])
        assert not any("Qat" in kind or "Ptq" in kind for kind in first["kinds"] + second["kinds"])

    def test_metrics_are_averaged_over_silos(self, quantized: Path) -> None:
        first, second = (found["metrics"] for found in left(quantized, "unbroken"))
        own = {"train_loss_step", "step_accuracy", "only_on_1"}
        assert "only_on_1" in second
        assert "only_on_1" not in first
        assert {name: first[name] for name in first if name not in own} == {
            name: second[name] for name in second if name not in own
        }
        assert first["train_loss_step"] != second["train_loss_step"]
        assert first["fedhq/train/loss"] == pytest.approx(first["train_loss_epoch"], rel=1e-6)
        assert {"val_loss", "quantized/val_loss", "quantized/val_accuracy"} <= set(first)
        values = [torch.load(quantized / f"evaluated-{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert values[0]["test"]["val_loss"] == values[0]["validate"]["val_loss"] == first["val_loss"]
        assert values[1]["test"]["quantized/val_loss"] == first["quantized/val_loss"]
        assert [each["predicted"] for each in values] == [3, 5]

    def test_each_round_is_recorded_with_every_silo(self, quantized: Path) -> None:
        records = list(read_rounds(quantized / "logs" / "0" / "rounds.jsonl"))
        assert [record.round for record in records] == [1, 2, 3, 4]
        last, metrics = records[-1], left(quantized, "unbroken")[0]["metrics"]
        assert [client.mode for client in last.clients] == ["ptq", "qat"]
        assert [client.num_examples for client in last.clients] == list(SIZES)
        assert [client.num_steps for client in last.clients] == [3, 7]
        assert last.metric_fp == metrics["val_loss"]
        assert last.metric_quantized == metrics["quantized/val_loss"]
        assert {"fp/val_loss", "fp/val_accuracy", "quantized/val_loss", "train/loss"} <= set(last.metrics)
        assert "fp/step_accuracy" not in last.metrics
        assert last.uplink_bytes == metrics["fedhq/bytes/uplink"]
        assert last.statistics_seconds > 0
        assert last.uplink_bytes - last.statistics_uplink_bytes < 2 * 4 * sum(
            value.numel() for value in left(quantized, "unbroken")[0]["state"].values()
        )
        assert last.total_virtual_seconds == metrics["fedhq/seconds/virtual"] > 0
        assert metrics["fedhq/silo_1/mode"] == 2
        assert "fedhq/round" in (quantized / "logs" / "0" / "metrics.csv").read_text()

    @pytest.mark.parametrize("which", ["", "-2"])
    def test_resumes_bitwise(self, quantized: Path, which: str) -> None:
        """Also from within a round of two epochs, with shuffling, dropout, Adam and a scheduler."""
        pairs = zip(left(quantized, f"unbroken{which}"), left(quantized, f"resumed{which}"), strict=True)
        for unbroken, resumed in pairs:
            assert same_bits(dict(unbroken["state"]), dict(resumed["state"]))
            assert unbroken["schedulers"] == resumed["schedulers"]
            assert unbroken["steps"] == resumed["steps"]
            moments, again = (found["optimizer"]["state"] for found in (unbroken, resumed))
            assert all(same_bits(dict(moments[key]), dict(again[key])) for key in moments)
            virtual = [found["metrics"]["fedhq/seconds/virtual"] for found in (unbroken, resumed)]
            assert virtual[0] == virtual[1]

    def test_a_checkpoint_always_holds_a_global_model(self, quantized: Path) -> None:
        after_one, within_two = (
            torch.load(quantized / f"unbroken-2/checkpoints/epoch={epoch}.ckpt", weights_only=False) for epoch in (1, 2)
        )
        assert same_bits(dict(after_one["state_dict"]), dict(within_two["state_dict"]))
        assert len(within_two[silo_checkpoint.KEY]) == 2

    def test_the_best_checkpoint_has_one_name_on_every_silo(self, quantized: Path) -> None:
        """Lightning puts the silo's own number of steps into it."""
        first, second = (torch.load(quantized / f"best-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert first == second
        assert Path(first["path"]).exists()
        assert first["tested"] == first["score"]

    def test_the_allocator_stays_coarse_among_few(self, quantized: Path) -> None:
        found = json.loads((quantized / "hybrid" / "allocation.json").read_text())
        assert found["explanation"].endswith("With fewer than 8 silos the boundary stays coarse.")
        assert [each["client_id"] for each in found["clients"]] == [0, 1]
        assert all(each["divergence"] > 0 for each in found["clients"])
        assert len(found["boundaries"]) == 3
        assert not (quantized / "hybrid" / "study.log").exists()

    @pytest.mark.parametrize("name", ["logs/0", "unbroken-2"])
    def test_the_deployed_model_is_written(self, quantized: Path, name: str) -> None:
        program = torch.export.load(quantized / name / "model" / "model.pt2").module()
        assert program(torch.zeros(5, 12)).shape == (5, 3)


def test_a_silo_that_fails_ends_the_others(tmp_path: Path) -> None:
    try:
        done = run_script(tmp_path, str(tmp_path), "raises")
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"still running: {error.output}")
    assert done.returncode != 0
    assert (tmp_path / "raised-1.txt").read_text() == "ValueError: silo 1 is out of order"


def test_payloads_are_not_pickled() -> None:
    from fedhq_lightning.silos.silo_rounds import SiloRound, snapshot

    module = Plain()
    payload = SiloRound(3, snapshot(module), frozenset(), {}, "weights").encode(module, 1)
    assert read_metadata(payload)["client"] == "1"
    assert read_metadata(payload)["round"] == "3"


@pytest.mark.corner
def test_the_script_of_the_docs_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```python\n(# silos\.py\n.*?)```", page, re.DOTALL)
    # Such as that silos seem to hold the same data.
    strict = 'import warnings\nwarnings.filterwarnings("error", message="FederatedAveraging")\n'
    (tmp_path / "silos.py").write_text(strict + text, encoding="utf-8")
    done = run_script(tmp_path, script=tmp_path / "silos.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(read_rounds(next(tmp_path.glob("**/rounds.jsonl"))))) == 3
    assert list(tmp_path.glob("**/model/model.pt2"))
