"""Clients that are late, empty, or send what cannot be used."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.report.banner import banner
from fedhq_lightning.run.run import Run

from ..small_federation import SmallData, SmallModule, same_bits, trainer
from .runs import checkpoint, fit, records


class _Poisons(SmallModule):
    """NaN where a client's first input is marked."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if (batch[0] == 77).any() else loss


class _PoisonedData(SmallData):
    def dataset(self, client_id: Any) -> Any:
        data = super().dataset(client_id)
        if client_id == 2:
            data.tensors[0][0, 0] = 77.0
        return data


class _MissingValues(SmallData):
    """A table in which two columns of some clients were not filled in."""

    def __init__(self, whose: Sequence[int] = (2,)) -> None:
        super().__init__()
        self.whose = whose

    def model_inputs(self) -> dict[str, Any]:
        return {"columns": ["age", *(f"lab {number}" for number in range(1, 11)), {"name": "dose"}]}

    def dataset(self, client_id: Any) -> Any:
        data = super().dataset(client_id)
        if client_id in self.whose:
            data.tensors[0][:, [0, 11]] = math.nan
        return data


@pytest.mark.usefixtures("quick")
class TestBadClients:
    @pytest.mark.parametrize("scheme", [None, "w4a8"])
    def test_an_update_that_is_not_finite_is_quarantined(self, scheme: str | None) -> None:
        settings: dict[str, Any] = {"scheme": scheme, "callbacks": FixedAllocator("qat" if scheme else "fp")}
        with pytest.warns(UserWarning, match=r"round \d: client 2 is quarantined: .*(not finite|not above 0)"):
            done, state = fit(_Poisons(), _PoisonedData(), **settings)
        assert done.summary["quarantined"] == 2
        statuses = {each.client_id: each.status for each in records(done)[1].clients}
        assert statuses == {0: "ok", 1: "ok", 2: "quarantined", 3: "ok"}
        assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())

    def test_the_others_are_averaged_as_if_it_were_not_there(self) -> None:
        with pytest.warns(UserWarning, match="quarantined"):
            _, poisoned = fit(_Poisons(), _PoisonedData(), max_rounds=1)
        _, without = fit(_Poisons(), SmallData({0: 20, 1: 13, 3: 27}), max_rounds=1)
        # Client 3 is third without client 2, so its examples differ; give it the same.
        data = SmallData({0: 20, 1: 13, 3: 27})
        data.dataset = SmallData().dataset  # type: ignore[method-assign]  # by id, as with all four
        _, same = fit(_Poisons(), data, max_rounds=1)
        assert same_bits(poisoned, same)
        assert not same_bits(poisoned, without)

    def test_a_round_without_any_usable_update_keeps_the_model(self) -> None:
        class AllPoisoned(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return super().training_step(batch, batch_idx) * math.nan

        module, there = AllPoisoned(), trainer(max_rounds=2)
        with (
            pytest.warns(UserWarning, match="quarantined|no usable update|no finite numbers") as caught,
            pytest.raises(RunError, match="none of 2 rounds had a usable update, so the model is untrained"),
        ):
            there.fit(module, SmallData())
        assert sum("no usable update arrived" in str(warning.message) for warning in caught) == 2
        assert not (there.run_dir / "model").exists()
        state = checkpoint(there)["state"]["global_state"]
        assert same_bits(state, SmallModule().state_dict())

    def test_missing_values_are_told_by_client_batch_and_column(self) -> None:
        with pytest.warns(UserWarning, match="client 2 is quarantined|makes the weights no finite") as caught:
            done, state = fit(SmallModule(), _MissingValues(), max_rounds=1)
        (client,) = (each for each in records(done)[1].clients if each.status == "quarantined")
        place = "its inputs have such values from the first training batch on, in 8 of 8 examples, in columns age, dose"
        assert client.reason == f"the update holds values that are not finite: {place}"
        assert any(place in str(each.message) for each in caught)
        told = banner(Run(done.run_dir))
        assert 'class="notice"' in told
        assert f"client 2, in 1 of 1 round: the update holds values that are not finite: {place}" in told
        # Looking for the place drew from the same generators as the fits.
        data = SmallData({0: 20, 1: 13, 3: 27})
        data.dataset = SmallData().dataset  # type: ignore[method-assign]  # by id, as with all four
        assert same_bits(state, fit(SmallModule(), data, max_rounds=1)[1])

    def test_where_all_clients_have_them_the_run_says_so_before_round_1_and_in_a_red_banner(self) -> None:
        there = trainer(max_rounds=5)
        with (
            pytest.warns(UserWarning, match="quarantined|usable update|no finite numbers") as caught,
            pytest.raises(RunError, match=r"round 1 had no usable update: the data .* client 0: .* columns age, dose"),
        ):
            there.fit(SmallModule(), _MissingValues(whose=range(4)))
        before = "client 3: one step on its first batch makes the weights no finite numbers, so its updates will not"
        assert before in str(caught[0].message)
        assert "columns age, dose" in str(caught[0].message)
        assert not (there.run_dir / "model").exists()
        assert (there.summary["best_round"], there.summary["rounds"]) == (None, 1)
        assert json.loads((there.run_dir / "summary.json").read_text())["failure"].startswith("round 1 had")
        told = banner(Run(there.run_dir))
        assert 'class="alarm"' in told
        assert "This run has no model to use" in told
        assert told.count("<li>client ") == 4
        assert not (there.run_dir / "checkpoints" / "best.ckpt").exists()

    def test_data_that_are_finite_are_not_blamed(self) -> None:
        with pytest.warns(UserWarning, match="so the training diverged: look at the loss"):
            fit(_Poisons(), _PoisonedData(), max_rounds=1)

    def test_nor_are_values_that_the_module_fills_in(self) -> None:
        class Fills(SmallModule):
            """Diverges in its second step."""

            def forward(self, inputs: Any) -> Any:
                return super().forward(inputs.nan_to_num())

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                has_moved = not torch.equal(self.net[0].weight, SmallModule().net[0].weight.to(self.device))
                return super().training_step(batch, batch_idx) * (math.nan if has_moved else 1)

        with (
            pytest.warns(UserWarning, match="quarantined|no usable update"),
            pytest.raises(RunError, match=r"none of 1 rounds .* client 0: .*: its data are not why, so the training"),
        ):
            fit(Fills(), _MissingValues(whose=range(4)), max_rounds=1, local_epochs=2)

    def test_an_empty_client_is_left_out_with_a_warning(self) -> None:
        data = SmallData({"a": 20, "b": 0, "c": 9})
        with pytest.warns(UserWarning, match="1 of 3 clients hold no examples and are left out: b"):
            done, _ = fit(data=data)
        assert {each.client_id for record in records(done) for each in record.clients} == {"a", "c"}

    def test_late_clients_are_left_out(self) -> None:
        everyone, _ = fit(fleet="mixed", max_rounds=1, data=SmallData((20,) * 6))
        seconds = {each.client_id: each.virtual_seconds for each in records(everyone)[1].clients}
        deadline = sorted(seconds.values())[2] * 1.001
        done, state = fit(fleet="mixed", max_rounds=1, data=SmallData((20,) * 6), round_deadline=deadline)
        record = records(done)[1]
        late = {each.client_id for each in record.clients if each.status == "late"}
        assert late == {client_id for client_id, value in seconds.items() if value > deadline} != set()
        assert (record.late, record.virtual_seconds) == (len(late), deadline)
        for each in record.clients:
            assert (each.uplink_bytes, each.num_steps, each.metrics) == (0, 0, {}) or each.client_id not in late
        on_time = SmallData({client_id: 20 for client_id in range(6) if client_id not in late})
        on_time.dataset = SmallData((20,) * 6).dataset  # type: ignore[method-assign]  # the same examples
        assert same_bits(state, fit(data=on_time, max_rounds=1)[1])

    def test_a_deadline_that_nobody_can_meet(self) -> None:
        with pytest.raises(ConfigurationError, match=r"round_deadline 1e-09 .* every client would be late"):
            fit(round_deadline=1e-9)

    def test_a_client_without_a_full_batch_is_idle(self) -> None:
        class DropsLast(SmallData):
            def train_dataloader(self, client_id: Any) -> Any:
                return DataLoader(self.dataset(client_id), 8, shuffle=True, drop_last=True)

        with pytest.warns(UserWarning, match="1 of 2 clients took no step"):
            done, _ = fit(data=DropsLast((20, 3)), local_steps=4)
        assert [(each.num_steps, each.status) for each in records(done)[1].clients] == [(4, "ok"), (0, "idle")]
