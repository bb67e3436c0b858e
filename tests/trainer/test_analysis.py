"""Runs whose allocator wants to know about clients: what is logged, and that training does not change by it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fedhq_lightning.allocation import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import client_fit
from fedhq_lightning.federated.client_analysis import ClientAnalyst
from fedhq_lightning.federated.lane_fit import LaneFitter
from fedhq_lightning.risk import SensitivityMeasure
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.types import ClientId

from ..curious_allocator import Curious
from ..small_federation import SmallData, SmallModule, same_bits
from ..small_recipe import write_recipe
from .runs import checkpoint, fit, last_state, records
from .test_processes import only_run, run_here, start


class Normed(SmallModule):
    """With buffers, dropout and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            layers = [nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)]
            self.net = nn.Sequential(nn.Linear(12, 12), *layers)
        self.net[0].requires_grad_(False)


def clients(there: Any) -> list[ClientRecord]:
    return [client for record in records(there) for client in record.clients]


@pytest.mark.usefixtures("quick")
class TestMeasuring:
    def test_is_no_part_of_the_wall_seconds_of_a_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0

        def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
            def slowed(*arguments: Any, **named: Any) -> Any:
                nonlocal now
                now += seconds
                return function(*arguments, **named)

            return slowed

        monkeypatch.setattr(client_fit, "time", SimpleNamespace(perf_counter=lambda: now))
        monkeypatch.setattr(ClientAnalyst, "sensitivity", taking(64.0, ClientAnalyst.sensitivity))
        monkeypatch.setattr(LaneFitter, "fit", taking(2.0, LaneFitter.fit))
        asked, _ = fit(callbacks=Curious(), scheme="w3a8", max_rounds=1, measured_seconds=True)
        for each in clients(asked):
            assert each.fit_wall_seconds == each.compute_seconds == 2.0
            assert each.analysis_seconds > 0, "the clock's stand"

    @pytest.mark.parametrize("uplink", ["weights", "delta"])
    @pytest.mark.parametrize("measure", ["sqnr", "loss"])
    def test_does_not_change_training(self, measure: SensitivityMeasure, uplink: str) -> None:
        settings: dict[str, Any] = {"scheme": "w3a8", "uplink": uplink, "clients_per_round": 3, "seed": 5}
        asked = fit(Normed(), callbacks=Curious(sensitivity=measure), **settings)
        plain = fit(Normed(), callbacks=FixedAllocator(0.5), **settings)
        assert same_bits(asked[1], plain[1])
        assert same_bits(checkpoint(asked[0])["state"]["global_state"], last_state(plain[0]))
        for mine, other in zip(clients(asked[0]), clients(plain[0]), strict=True):
            assert mine.metrics == other.metrics
            assert mine.sensitivity is not None
            assert mine.sensitivity >= 0
            assert mine.update_divergence is not None
            assert 0 <= mine.update_divergence <= 2
            assert (other.sensitivity, other.update_divergence, other.analysis_seconds) == (None, None, 0.0)
        assert len({each.sensitivity for each in clients(asked[0])}) > 2
        assert [each.metrics for each in records(asked[0])] == [each.metrics for each in records(plain[0])]

    def test_costs_virtual_time_that_counts(self) -> None:
        asked = fit(scheme="w3a8", callbacks=Curious("ptq"), fleet="mixed", max_rounds=1)[0]
        plain = fit(scheme="w3a8", callbacks=FixedAllocator("ptq"), fleet="mixed", max_rounds=1)[0]
        for mine, other in zip(clients(asked), clients(plain), strict=True):
            assert mine.analysis_seconds > 0
            assert mine.virtual_seconds == pytest.approx(other.virtual_seconds + mine.analysis_seconds)
        slowest = max(each.virtual_seconds for each in clients(asked))
        assert records(asked)[1].virtual_seconds == slowest

        deadline = max(each.virtual_seconds for each in clients(plain)) * (1 + 1e-9)
        late = fit(scheme="w3a8", callbacks=Curious("ptq"), fleet="mixed", max_rounds=1, round_deadline=deadline)[0]
        assert sum(each.status == "late" for each in clients(late)) >= 1
        for each in clients(late):
            assert (each.status == "late") == (each.virtual_seconds > deadline) == (each.sensitivity is None)
            assert (each.update_divergence is None) == (each.status == "late")

    def test_needs_a_scheme(self) -> None:
        with pytest.raises(ConfigurationError, match=r"wants every client's sensitivity \(loss\)"):
            fit(callbacks=Curious("fp"))

    def test_updates_need_neither_scheme_nor_labels(self) -> None:
        there, _ = fit(data=SmallData(tells=False), callbacks=Curious("fp", None))
        assert all(each.update_divergence is not None for each in clients(there))
        assert all(each.sensitivity is None for each in clients(there))

    @pytest.mark.parametrize("max_rounds", [1, 3])
    def test_a_sensitivity_that_is_no_number_is_left_out_with_one_warning(self, max_rounds: int) -> None:
        class Overflows(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = super().training_step(batch, batch_idx)
                return loss if self.training else loss * torch.inf

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            there, _ = fit(Overflows(), scheme="w3a8", callbacks=Curious(), max_rounds=max_rounds)
        said = [str(each.message) for each in caught if "sensitivity" in str(each.message)]
        assert len(said) == 1
        assert "round 1: the sensitivity (loss) of 4 clients is not finite" in said[0]
        assert {each.status for each in clients(there)} == {"ok"}
        assert {each.sensitivity for each in clients(there)} == {None}

    @pytest.mark.parametrize("counts", [None, torch.zeros(3, dtype=torch.int64), torch.ones(4)])
    def test_a_client_without_usable_labels_is_named(self, counts: torch.Tensor | None) -> None:
        class OneUnlabelled(SmallData):
            def label_counts(self, client_id: ClientId) -> torch.Tensor | None:
                return counts if client_id == 2 else super().label_counts(client_id)

        with pytest.raises(ConfigurationError, match=r"label_counts\(2\)"):
            fit(data=OneUnlabelled(), scheme="w4a8", callbacks=FixedAllocator(0.5, by="divergence"))

    def test_a_client_that_does_not_move_has_no_direction(self) -> None:
        """The others are compared with the mean of all, that one among them."""

        class Stays(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return super().training_step(batch, batch_idx) * (0.0 if len(batch[0]) < 8 else 1.0)

        there, _ = fit(Stays(), SmallData({"still": 5, "a": 24, "b": 16}), callbacks=Curious("fp", None), max_rounds=1)
        found = {each.client_id: each.update_divergence for each in clients(there)}
        assert found["still"] is None
        assert found["a"] is not None
        assert found["b"] is not None


@pytest.mark.corner
def test_two_processes_find_the_same_bits(tmp_path: Path) -> None:
    """Every client's numbers and the model, as equality."""
    changes = {
        "trainer.callbacks": [{"class_path": "tests.curious_allocator.Curious"}],
        "trainer.clients_per_round": 3,
        "trainer.enable_progress_bar": False,
        "trainer.scheme": "w3a8",
    }
    recipe = str(write_recipe(tmp_path / "curious.yaml", changes))
    two = start("run", recipe, "--trainer.devices=2", f"--trainer.default_root_dir={tmp_path / 'two'}")
    run_here("run", recipe, f"--trainer.default_root_dir={tmp_path / 'one'}")
    printed = two.communicate(timeout=240)
    assert two.returncode == 0, printed
    runs = [only_run(tmp_path / name) for name in ("one", "two")]
    found = [
        [
            (each.round, each.client_id, each.sensitivity, each.update_divergence, each.analysis_seconds)
            for record in RunDirectory(run).read_rounds()
            for each in record.clients
        ]
        for run in runs
    ]
    assert len(found[0]) == 6
    assert None not in {value for row in found[0] for value in row}
    assert found[0] == found[1]
    states = [load_checkpoint(RunDirectory.of_checkpoint(run)[1])["state"]["global_state"] for run in runs]
    assert same_bits(*states)
