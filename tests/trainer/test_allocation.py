"""A run whose allocator is the hybrid one: one line of a script, and what it leaves behind."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fedhq_lightning import QuantScheme
from fedhq_lightning.callbacks import HybridAllocator
from fedhq_lightning.errors import ConfigurationError

from ..small_federation import SmallData, SmallModule, trainer
from .runs import fit, records

RUN = {"max_rounds": 14, "clients_per_round": 3, "scheme": "w3a8", "fleet": "mixed"}


@pytest.mark.usefixtures("quick")
class TestHybridRun:
    def test_one_argument_is_all_that_a_script_needs(self) -> None:
        done, _ = fit(**RUN, callbacks=[HybridAllocator()])
        assert done.summary["mode_counts"] == {
            "fp": 0,
            "ptq": 42,
            "qat": 0,
        }  # with edges at 8 bits rounding costs nothing

    def test_qat_begins_once_rounding_is_seen_to_cost(self) -> None:
        scheme = QuantScheme("w2a2", edge_bits=None)
        done, _ = fit(**RUN | {"scheme": scheme}, callbacks=[HybridAllocator(slowdown=1.0)])
        in_qat = [each.mode_counts["qat"] > 0 for each in records(done)[1:]]
        assert in_qat[:3] == [False] * 3
        assert any(in_qat[3:])

    def test_every_round_logs_its_boundary(self) -> None:
        done, _ = fit(**RUN, callbacks=HybridAllocator(window=1))
        rounds = records(done)[1:]
        assert all(
            {"slack", "share", "seconds", "risk", "work", "trial", "incumbent"} <= set(each.allocation)
            for each in rounds
        )
        assert all(each.reason for each in rounds)
        header = (done.run_dir / "metrics.csv").read_text().splitlines()[0]
        assert "allocation/slack" in header

    def test_the_run_directory_holds_the_map_and_a_study_that_optuna_opens(self) -> None:
        done, _ = fit(**RUN, callbacks=HybridAllocator(window=1))
        content = json.loads((done.run_dir / "allocation.json").read_text())
        assert [each["round"] for each in content["boundaries"]] == list(range(1, 15))
        assert {client["client_id"] for client in content["clients"]} == {0, 1, 2, 3}
        storage = JournalStorage(JournalFileBackend(str(done.run_dir / "study.log")))
        trials = optuna.load_study(study_name="fedhq", storage=storage).trials
        assert trials[0].value == 0.0
        used = {int(each.allocation["trial"]) for each in records(done)[1:]}
        assert used <= {trial.number for trial in trials}

    def test_an_earlier_run_starts_the_study(self) -> None:
        first, _ = fit(**RUN, callbacks=HybridAllocator(window=1))
        second, _ = fit(**RUN, callbacks=HybridAllocator(window=1, warm_start=[str(first.run_dir)]))
        storage = JournalStorage(JournalFileBackend(str(second.run_dir / "study.log")))
        origins = [
            trial.user_attrs["origin"] for trial in optuna.load_study(study_name="fedhq", storage=storage).trials
        ]
        assert origins[0] == str(first.run_dir)
        assert "run" in origins

    def test_an_earlier_run_that_is_not_there_is_refused_before_round_1(self, tmp_path: Path) -> None:
        broken = trainer(**RUN, callbacks=HybridAllocator(warm_start=[str(tmp_path / "gone")]))
        with pytest.raises(ConfigurationError, match="gone"):
            broken.fit(SmallModule(), SmallData())
        assert not list(Path(broken.default_root_dir).glob("*/*"))

    def test_a_client_without_labels_under_a_label_measure_is_named(self) -> None:
        class OneSilent(SmallData):
            def label_counts(self, client_id):
                return None if client_id == 2 else super().label_counts(client_id)

        with pytest.raises(ConfigurationError, match="2"):
            trainer(**RUN, callbacks=HybridAllocator()).fit(SmallModule(), OneSilent())

    def test_without_labels_anywhere_it_goes_by_updates(self) -> None:
        done = trainer(**RUN, callbacks=HybridAllocator())
        done.fit(SmallModule(), SmallData(tells=False))
        clients = [client for each in records(done)[1:] for client in each.clients]
        assert all(client.update_divergence is not None for client in clients)
