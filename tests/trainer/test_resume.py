"""A run that was interrupted goes on as if nothing had happened."""

import csv
import enum
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.callbacks import EarlyStopping, FixedAllocator, HybridAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import resume
from fedhq_lightning.federated.algorithms import FedOpt, FedProx
from fedhq_lightning.federated.callback import RoundCallback
from fedhq_lightning.quantize import LaneOptions
from fedhq_lightning.run.checkpoint_file import to_bytes
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import SmallData, SmallModule, same_bits, trainer
from .runs import Recorder, checkpoint, fit, records

RESUMABLE: dict[str, Any] = {
    "max_rounds": 4,
    "clients_per_round": 3,
    "scheme": "w4a8",
    "uplink": "delta",
    "ema_decay": 0.5,
    "round_lr": "cosine",
}


@pytest.mark.usefixtures("quick")
class TestResume:
    def broken_and_resumed(self, after: int, make: Callable[[], dict[str, Any]]) -> tuple[Any, Any]:
        """An unbroken run, and one that was interrupted at the end of round `after` and went on."""

        def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
            if record.round == after:
                raise KeyboardInterrupt

        def settings(callback: RoundCallback) -> dict[str, Any]:
            own = make()
            return RESUMABLE | own | {"callbacks": [callback, *own.get("callbacks", [])]}

        unbroken, _ = fit(**settings(Recorder()))
        broken = trainer(**settings(Recorder(interrupt)))
        with pytest.raises(KeyboardInterrupt):
            broken.fit(SmallModule(), SmallData())
        resumed, _ = fit(ckpt_path=broken.run_dir, **settings(Recorder()))
        assert resumed.run_dir == broken.run_dir
        return unbroken, resumed

    @pytest.mark.parametrize("after", [1, 3, 4])
    @pytest.mark.parametrize(
        "make",
        [
            lambda: {"aggregator": FedOpt(partial(torch.optim.Adam, lr=0.05)), "callbacks": [FixedAllocator(0.5)]},
            lambda: {"aggregator": FedOpt(partial(torch.optim.SGD, lr=1.0, momentum=0.9)), "scheme": None},
            lambda: {"aggregator": FedProx(0.1), "callbacks": [FixedAllocator("qat")], "downlink": "scheme"},
            lambda: {"scheme": "w4a4s", "callbacks": [FixedAllocator(0.5)]},
            lambda: {"callbacks": [HybridAllocator(window=1, sensitivity="loss")], "fleet": "mixed"},
            lambda: {"callbacks": [HybridAllocator(window=1, divergence="updates")], "fleet": "mixed"},
        ],
        ids=["FedAdam", "FedAvgM", "FedProx", "static ranges", "HybridAllocator", "HybridAllocator by updates"],
    )
    def test_goes_on_as_if_nothing_had_happened(self, after: int, make: Callable[[], dict[str, Any]]) -> None:
        unbroken, resumed = self.broken_and_resumed(after, make)
        one, two = checkpoint(unbroken)["state"], checkpoint(resumed)["state"]
        for name in ("global_state", "averaged_state", "best_state"):
            assert same_bits(one[name], two[name]), name
        assert one["best_round"] == two["best_round"]
        assert [record.round for record in records(resumed)] == [0, 1, 2, 3, 4]
        for mine, other in zip(records(resumed), records(unbroken), strict=True):
            assert mine.metrics == other.metrics
            assert mine.mode_counts == other.mode_counts
            assert [client.mode for client in mine.clients] == [client.mode for client in other.clients]
            assert mine.allocation == other.allocation
            assert mine.total_virtual_seconds == other.total_virtual_seconds
        for name in ("metric_fp", "metric_quantized", "uplink_bytes", "virtual_seconds", "mode_counts", "worst_client"):
            assert resumed.summary[name] == unbroken.summary[name]
        assert (resumed.run_dir / "model" / "weights.safetensors").read_bytes() == (
            unbroken.run_dir / "model" / "weights.safetensors"
        ).read_bytes()
        rows = list(csv.DictReader((resumed.run_dir / "metrics.csv").read_text().splitlines()))
        assert [row["round"] for row in rows] == ["0", "1", "2", "3", "4"]

    def test_from_an_older_checkpoint(self) -> None:
        unbroken, state = fit(max_rounds=3)
        other = unbroken.run_dir.with_name("copy")
        shutil.copytree(unbroken.run_dir, other)
        (other / "summary.json").unlink()
        older = RunDirectory(other).saved_checkpoints()[0]
        assert older.name == "round-000002.ckpt"
        resumed, again = fit(max_rounds=3, ckpt_path=older)
        assert same_bits(state, again)
        assert [record.round for record in records(resumed)] == [0, 1, 2, 3]
        assert (other / "summary.json").exists()

    def test_a_finished_run_is_only_completed(self) -> None:
        done, state = fit(max_rounds=2)
        before = (done.run_dir / "rounds.jsonl").read_text()
        (done.run_dir / "summary.json").unlink()
        resumed, again = fit(max_rounds=2, ckpt_path=done.run_dir)
        assert same_bits(state, again)
        assert (done.run_dir / "rounds.jsonl").read_text() == before
        assert json.loads((done.run_dir / "summary.json").read_text()) == resumed.summary

    def test_callbacks_take_up_their_state(self) -> None:
        def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
            if record.round == 2:
                raise KeyboardInterrupt

        stopping = EarlyStopping(patience=3, min_delta=100.0)
        broken = trainer(max_rounds=9, callbacks=[stopping, Recorder(interrupt)])
        with pytest.raises(KeyboardInterrupt):
            broken.fit(SmallModule(), SmallData())
        again = EarlyStopping(patience=3, min_delta=100.0)
        resumed, _ = fit(max_rounds=9, callbacks=[again, Recorder()], ckpt_path=broken.run_dir)
        assert again.best == records(resumed)[1].monitored
        assert resumed.summary["rounds"] == 4
        once_more = EarlyStopping(patience=3, min_delta=100.0)
        finished, _ = fit(max_rounds=9, callbacks=[once_more, Recorder()], ckpt_path=broken.run_dir)
        assert finished.summary["rounds"] == 4, "a run that was stopped stays stopped"

    def test_another_recipe_is_refused_and_nothing_written(self) -> None:
        done, _ = fit()
        before = sorted(path.name for path in done.run_dir.parent.iterdir())
        others: list[tuple[dict[str, Any], str]] = [
            ({"seed": 5}, "trainer.seed was 0, is now 5"),
            ({"scheme": "w4a8"}, "trainer.scheme was None, is now 'w4a8'"),
            ({"module": SmallModule(lr=0.5)}, "model.lr was 0.1, is now 0.5"),
            ({"data": SmallData(batch_size=4)}, "data.batch_size was 8, is now 4"),
        ]
        for settings, message in others:
            with pytest.raises(ConfigurationError, match=message):
                fit(ckpt_path=done.run_dir, **settings)
        assert sorted(path.name for path in done.run_dir.parent.iterdir()) == before

    def test_a_lane_option_that_the_package_has_gained_is_no_other_recipe(self) -> None:
        before = {"described": {"trainer": {"lanes": {"qat_kernel": "int8"}}}}
        resume._check_same(before, {"trainer": {"lanes": {"qat_kernel": "int8", "range_lr": 0.01}}})
        with pytest.raises(ConfigurationError, match=r"range_lr was 0\.01, is now 0\.1"):
            resume._check_same(before, {"trainer": {"lanes": {"qat_kernel": "int8", "range_lr": 0.1}}})

    def test_a_run_from_before_int8_gradients_were_the_default(self) -> None:
        now = trainer(scheme="w4a8").described
        assert now["lanes"]["qat_backward"] == "int8"
        before = {"described": {"trainer": {**now, "lanes": None}}}
        with pytest.raises(ConfigurationError, match=r"trainer\.lanes\.qat_backward was 'bf16', is now 'int8'; resume"):
            resume._check_same(before, {"trainer": now})
        lanes = LaneOptions(qat_backward="bf16")
        resume._check_same(before, {"trainer": trainer(scheme="w4a8", lanes=lanes).described})

    def test_what_changes_no_bit_may_change(self, tmp_path: Path) -> None:
        done, _ = fit()
        fit(ckpt_path=done.run_dir, checkpoint_every_n_rounds=2, default_root_dir=tmp_path / "other")

    def test_the_kind_of_device_decides_not_its_name(self) -> None:
        done, _ = fit(accelerator="cpu")
        if not torch.cuda.is_available():
            fit(ckpt_path=done.run_dir, accelerator="auto")
        path = RunDirectory.of_checkpoint(done.run_dir)[1]
        saved = checkpoint(done)
        saved["described"]["device"] = "cuda"
        path.write_bytes(to_bytes(saved))
        with pytest.raises(ConfigurationError, match="device was 'cuda', is now 'cpu'"):
            fit(ckpt_path=done.run_dir)

    def test_a_fleet_whose_file_was_edited(self, tmp_path: Path) -> None:
        fleet = tmp_path / "mine.yaml"
        fleet.write_text("profiles: {raspberry-pi-4: 1}\n")
        done, _ = fit(fleet=fleet)
        fit(ckpt_path=done.run_dir, fleet=fleet)
        fleet.write_text("profiles: {phone-snapdragon-855: 1}\n")
        with pytest.raises(ConfigurationError, match=r"virtual_fleet was 'content .*', is now 'content "):
            fit(ckpt_path=done.run_dir, fleet=fleet)

    def test_one_process_at_a_time(self) -> None:
        refused: list[str] = []

        def resume_too(there: FederatedTrainer, record: RoundRecord) -> None:
            if record.round != 1:
                return
            with pytest.raises(ConfigurationError) as raised:
                fit(ckpt_path=there.run_dir, callbacks=Recorder())
            refused.append(str(raised.value))

        done, _ = fit(callbacks=Recorder(resume_too))
        assert [record.round for record in records(done)] == [0, 1, 2]
        assert refused == [f"{done.run_dir}: this run is going on in another process; let it end, or stop it, first"]
        fit(ckpt_path=done.run_dir, callbacks=Recorder())

    @pytest.mark.parametrize("left", [0, 2])
    def test_lost_rounds_are_not_run_again(self, left: int) -> None:
        done, _ = fit(max_rounds=3)
        file = done.run_dir / "rounds.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:left]))
        before = {path: path.read_bytes() for path in done.run_dir.rglob("*") if path.is_file()}
        with pytest.raises(ConfigurationError, match=r"rounds\.jsonl: does not hold rounds 0 to 3"):
            fit(max_rounds=3, ckpt_path=done.run_dir)
        assert {path: path.read_bytes() for path in done.run_dir.rglob("*") if path.is_file()} == before

    def test_a_failure_leaves_a_resumed_run_alone(self) -> None:
        done, _ = fit()

        class Refuses(RoundCallback):
            def on_fit_start(self, there: FederatedTrainer) -> None:
                raise ConfigurationError("no")

        (done.run_dir / "summary.json").unlink()
        there = trainer()
        there.callbacks.append(Refuses())
        with pytest.raises(ConfigurationError, match="no"):
            there.fit(SmallModule(), SmallData(), done.run_dir)
        assert len(records(done)) == 3

    def test_in_one_session_with_what_setup_has_changed(self) -> None:
        class Counts(SmallData):
            def __init__(self) -> None:
                super().__init__()
                self.num_train = 0

            def setup(self, stage: str) -> None:
                self.num_train = sum(self.sizes.values())

        data, stops = Counts(), [1]

        def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
            if record.round in stops:
                raise KeyboardInterrupt

        there = trainer(callbacks=Recorder(interrupt))
        with pytest.raises(KeyboardInterrupt):
            there.fit(SmallModule(), data)
        stops.clear()
        there.fit(SmallModule(), data, there.run_dir)
        assert there.summary["rounds"] == 2

    def test_enums_among_the_settings(self) -> None:
        class Kind(str, enum.Enum):  # noqa: UP042  # older than StrEnum, and still written
            PLAIN = "plain"
            FANCY = "fancy"

        class WithKind(SmallModule):
            def __init__(self, kind: Kind = Kind.PLAIN) -> None:
                super().__init__()
                self.kind = kind

        done, _ = fit(WithKind())
        fit(WithKind(), ckpt_path=done.run_dir)
        with pytest.raises(ConfigurationError, match=r"model\.kind was 'plain', is now 'fancy'"):
            fit(WithKind(Kind.FANCY), ckpt_path=done.run_dir)

    def test_the_best_checkpoint_is_no_run(self) -> None:
        done, _ = fit()
        with pytest.raises(ConfigurationError, match=r"best\.ckpt.*give a run directory"):
            fit(ckpt_path=done.run_dir / "checkpoints" / "best.ckpt")

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="nothing to resume from"):
            fit(ckpt_path=tmp_path / "nowhere")
