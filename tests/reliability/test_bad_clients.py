"""One bad client of seven, of each kind, and three of ten at once: the model is that of the run without them."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.records import ClientRecord, read_rounds
from fedhq_lightning.types import ClientId, StateDict

from ..small_federation import same_bits, trainer
from ..three_ways import NORMED, run_three_ways
from ..trainer.runs import checkpoint, records
from .bad_clients import ALL_KINDS, CONTAINED, LEFT_OUT, Arm, Bad, BadData, BadModule

MODES = ("fp", "ptq", "qat")
IDLE = ("no loss", "loader without batches", "loader lies")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*quarantined", "ignore:.*took no step", "ignore:.*while client", "ignore:lr_scheduler.step"
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.chdir(tmp_path_factory.mktemp("run"))
    yield
    Bad.kinds, Bad.armed = {}, False


def run(
    kinds: Mapping[ClientId, str], client_ids: Sequence[int], mode: str, **settings: Any
) -> tuple[StateDict, list[list[ClientRecord]]]:
    """The last model of three rounds, and the records of their clients."""
    Bad.kinds, Bad.armed = kinds, False
    given = {"max_rounds": 3, "scheme": "w4a8", "callbacks": [Arm(), FixedAllocator(mode)]}  # type: ignore[arg-type]  # one
    there = trainer(**given | settings)
    there.writes_model = False
    there.fit(BadModule(), BadData(client_ids))
    state = checkpoint(there)["state"]["global_state"]
    return state, [list(record.clients) for record in records(there)[1:]]


@cache
def sound_run(client_ids: tuple[int, ...], mode: str, **settings: Any) -> tuple[StateDict, list[list[ClientRecord]]]:
    return run({}, client_ids, mode, **settings)


def training_of(clients: Sequence[ClientRecord], client_ids: Sequence[int]) -> list[Any]:
    """What these clients logged and sent."""
    return [(each.metrics, each.num_steps, each.uplink_bytes) for each in clients if each.client_id in client_ids]


def test_there_are_more_than_thirty_kinds() -> None:
    assert len(set(ALL_KINDS)) == len(LEFT_OUT) + len(CONTAINED) > 30


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=[pytest.mark.corner] * (mode != "fp")) for mode in MODES])
class TestAlone:
    @pytest.mark.parametrize(
        "kind",
        # Its way is that of "out of memory".
        [pytest.param(each, marks=[pytest.mark.slow] * (each == "MemoryError")) for each in LEFT_OUT],
    )
    def test_the_model_is_that_of_the_run_without_it(self, kind: str, mode: str) -> None:
        state, rounds = run({2: kind}, range(7), mode)
        assert same_bits(state, sound_run((0, 1, 3, 4, 5, 6), mode)[0])
        for clients in rounds:
            [bad] = [each for each in clients if each.client_id == 2]
            assert bad.status == ("idle" if kind in IDLE else "quarantined")
            assert 0 < len(bad.reason) <= 200
            assert bad.reason.isprintable()

    @pytest.mark.parametrize("kind", CONTAINED)
    def test_nobody_else_notices(self, kind: str, mode: str) -> None:
        _, rounds = run({2: kind}, range(7), mode)
        others = [0, 1, 3, 4, 5, 6]
        assert training_of(rounds[0], others) == training_of(sound_run(tuple(range(7)), mode)[1][0], others)
        assert all(each.status == "ok" for clients in rounds for each in clients if each.client_id != 2)
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() is torch.float32
        assert torch.get_num_threads() == 1

    @pytest.mark.parametrize("kind", ["logs", "default dtype", "directory", "counter", "claims 2^29", "another buffer"])
    def test_what_changes_no_update_changes_nothing(self, kind: str, mode: str) -> None:
        assert same_bits(run({2: kind}, range(7), mode)[0], sound_run(tuple(range(7)), mode)[0])


class TestTogether:
    @pytest.mark.parametrize("first", range(0, len(LEFT_OUT), 3))
    def test_three_of_ten(self, first: int) -> None:
        kinds = [LEFT_OUT[(first + step) % len(LEFT_OUT)] for step in range(3)]
        mode = MODES[first // 3 % 3]
        state, _ = run(dict(zip((1, 4, 8), kinds, strict=True)), range(10), mode)
        assert same_bits(state, sound_run((0, 2, 3, 5, 6, 7, 9), mode)[0])

    @pytest.mark.parametrize("first", range(0, len(CONTAINED), 3))
    def test_three_of_ten_that_others_do_not_notice(self, first: int) -> None:
        kinds = [CONTAINED[(first + step) % len(CONTAINED)] for step in range(3)]
        mode, others = MODES[first // 3 % 3], [0, 2, 3, 5, 6, 7, 9]
        _, rounds = run(dict(zip((1, 4, 8), kinds, strict=True)), range(10), mode)
        assert training_of(rounds[0], others) == training_of(sound_run(tuple(range(10)), mode)[1][0], others)


@pytest.mark.parametrize("kind", ["NaN buffer", "negative variance", "float64 buffer", "weights of 8e9", "half"])
@pytest.mark.parametrize(
    "settings", [{"scheme": None}, {"uplink": "weights"}, {"retake_batch_statistics": False}], ids=str
)
def test_other_ways_to_send(kind: str, settings: dict[str, Any]) -> None:
    """Without retaking, batch statistics travel, and are checked."""
    state, rounds = run({2: kind}, range(7), "fp", **settings)
    statuses = {each.status for clients in rounds for each in clients if each.client_id == 2}
    if statuses == {"quarantined"}:
        assert same_bits(state, sound_run((0, 1, 3, 4, 5, 6), "fp", **settings)[0])
    else:
        assert kind in ("half", "float64 buffer") or settings.get("retake_batch_statistics", True)
        assert all(bool(value.isfinite().all()) for value in state.values())
        assert bool((state["norm.running_var"] >= 0).all())


class TestPolicy:
    def test_an_error_may_end_the_run(self) -> None:
        with pytest.raises(RuntimeError, match="boom") as caught:
            run({2: "step raises"}, range(7), "fp", on_client_error="raise")
        assert "while client 2 trained in fp, in round 1" in caught.value.__notes__

    @pytest.mark.parametrize(
        ("kind", "policy", "tries"),
        [
            ("step raises", "quarantine", ["fp"]),
            ("step raises", "retry", ["qat", "qat"]),
            ("out of memory", "quarantine", ["qat", "fp"]),
        ],
    )
    def test_who_tries_again(self, kind: str, policy: str, tries: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Any] = []
        step = BadModule.training_step

        def look(self: BadModule, batch: Any, batch_idx: int) -> Any:
            if Bad.kind_of(int(batch[2][0])):
                seen.append(batch_idx)
            return step(self, batch, batch_idx)

        monkeypatch.setattr(BadModule, "training_step", look)
        run({2: kind}, range(7), "qat", on_client_error=policy, max_rounds=1)
        assert len(seen) == len(tries)

    def test_without_memory_for_qat_it_trains_in_fp(self, monkeypatch: pytest.MonkeyPatch) -> None:
        step = BadModule.training_step

        def heavy(self: BadModule, batch: Any, batch_idx: int) -> Any:
            if type(self.net) is not torch.nn.Linear and int(batch[2][0]) == 2 and Bad.armed:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return step(self, batch, batch_idx)

        monkeypatch.setattr(BadModule, "training_step", heavy)
        _, [clients] = run({}, range(7), "qat", max_rounds=1)
        found = {each.client_id: (each.mode, each.status, each.reason) for each in clients}
        assert found[2] == ("fp", "ok", "trained in fp: no memory was left in qat")
        assert all(each == ("qat", "ok", "") for client_id, each in found.items() if client_id != 2)

    def test_the_records_have_a_short_traceback(self) -> None:
        _, [clients] = run({2: "step raises"}, range(7), "fp", max_rounds=1)
        [bad] = [each for each in clients if each.client_id == 2]
        assert bad.reason.startswith("RuntimeError: boom (bad_clients.py:")
        lines = bad.traceback.splitlines()
        assert 2 <= len(lines) <= 5
        assert all("bad_clients.py" in line and len(line) <= 200 for line in lines[-2:])
        assert not any(each.traceback for each in clients if each.client_id != 2)

    def test_a_mistake_of_the_module_ends_the_first_round(self) -> None:
        with pytest.raises(RuntimeError, match="boom") as caught:
            run(dict.fromkeys(range(7), "step raises"), range(7), "fp")
        assert "all 7 clients failed in round 1" in caught.value.__notes__

    def test_without_memory_for_anybody_the_first_round_ends_the_run(self) -> None:
        with pytest.raises(RunError, match=r"all 7 clients failed in round 1; client 0: OutOfMemoryError: CUDA out of"):
            run(dict.fromkeys(range(7), "out of memory"), range(7), "qat")

    def test_three_fruitless_rounds_end_the_run(self) -> None:
        kinds = dict.fromkeys(range(6), "step raises") | {6: "NaN weights"}
        with (
            pytest.warns(UserWarning, match="no usable update"),
            pytest.raises(RunError, match=r"rounds 1 to 3 had no usable update, .* RuntimeError: boom"),
        ):
            run(kinds, range(7), "fp", max_rounds=9)

    def test_too_few_leave_the_model(self) -> None:
        with (
            pytest.warns(UserWarning, match="5 usable updates arrived, fewer than min_clients 6"),
            pytest.raises(RunError, match="none of 2 rounds had 6 usable updates"),
        ):
            run({2: "NaN weights", 3: "step raises"}, range(7), "fp", max_rounds=2, min_clients=6)
        with pytest.raises(ConfigurationError, match="min_clients 8: a cohort has 7 clients"):
            run({}, range(7), "fp", min_clients=8)

    def test_who_fails_three_times_sits_out(self) -> None:
        with pytest.warns(UserWarning, match=r"round 3: client 2, .* 3 times in a row, sits out the next 2 rounds"):
            state, rounds = run({2: "step raises"}, range(7), "fp", max_rounds=7, sit_out_rounds=2)
        assert [2 in {each.client_id for each in clients} for clients in rounds] == [True] * 3 + [False] * 2 + [
            True
        ] * 2
        assert same_bits(state, run({}, (0, 1, 3, 4, 5, 6), "fp", max_rounds=7)[0])

    def test_others_take_its_place(self) -> None:
        _, rounds = run({2: "step raises"}, range(7), "fp", max_rounds=9, clients_per_round=6, sit_out_rounds=50)
        assert [len(clients) for clients in rounds] == [6] * 9
        assert not any(each.client_id == 2 for clients in rounds[-3:] for each in clients)


@pytest.mark.usefixtures("no_program")
def test_two_processes_and_a_resumed_run_leave_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = NORMED | {
        "model.class_path": "tests.normed_module.Flaky",
        "data.init_args.partitioner.init_args.num_partitions": 12,
        "trainer.clients_per_round": 8,
        "trainer.local_steps": 3,
        "trainer.max_rounds": 5,
        "trainer.sit_out_rounds": 1,
    }
    states, told = [], []
    for folder in run_three_ways(tmp_path, changes, monkeypatch):
        states.append(load_checkpoint(folder / "checkpoints" / "round-000005.ckpt")["state"])
        clients = [each for record in read_rounds(folder / "rounds.jsonl") for each in record.clients]
        told.append([(each.round, each.client_id, each.mode, each.status, each.reason) for each in clients])
    assert told[0] == told[1] == told[2]
    assert len({reason[:12] for *_, status, reason in told[0] if status == "quarantined"}) >= 3
    for state in states[1:]:
        assert same_bits(state["global_state"], states[0]["global_state"])
        assert state["usual_norms"] == states[0]["usual_norms"]
        assert state["offences"] == states[0]["offences"]
