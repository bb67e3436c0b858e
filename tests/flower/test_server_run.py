import warnings
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from fedhq_lightning.errors import RunError
from fedhq_lightning.flower.messages import Answer, Order, Reply
from fedhq_lightning.flower.server_run import run_on
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import same_bits
from .nodes_here import NodesHere, text_of


def rounds_of(run: FederatedTrainer) -> list[RoundRecord]:
    return list(RunDirectory(run.run_dir).stream_rounds())


def model_of(run: FederatedTrainer) -> dict[str, Tensor]:
    (last,) = sorted(run.run_dir.glob("checkpoints/round-*.ckpt"))[-1:]
    return dict(load_checkpoint(last)["state"]["global_state"])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return text_of({"trainer.default_root_dir": str(tmp_path_factory.mktemp("runs"))})


@pytest.fixture(scope="module")
def here(text: str) -> FederatedTrainer:
    trainer, module, data = resolve("small", text).instantiate()
    trainer.fit(module, data)
    return trainer


@pytest.fixture(scope="module")
def there(text: str) -> tuple[FederatedTrainer, NodesHere]:
    nodes = NodesHere(text, lambda order, reply: _with_restart(nodes, order, reply))
    return run_on(nodes, "small", text), nodes


def _with_restart(nodes: NodesHere, order: Order, reply: Reply) -> Reply:
    if (order.round, order.work, order.client_id) == (1, "statistics", 1):
        nodes.restart(1)
    return reply


def test_the_model_is_the_simulators_to_the_bit_though_a_node_restarts(here: FederatedTrainer, there: Any) -> None:
    assert same_bits(model_of(here), model_of(there[0]))
    assert same_bits(here._fitted_state, there[0]._fitted_state)


def test_records_differ_in_wall_seconds_and_in_what_never_travels(here: FederatedTrainer, there: Any) -> None:
    wall = {"fit_wall_seconds": 0.0, "downlink_bytes": 0, "download_seconds": 0.0}
    for one, other in zip(rounds_of(here), rounds_of(there[0]), strict=True):
        assert one.metrics == other.metrics
        assert [each.to_json() | wall for each in one.clients] == [each.to_json() | wall for each in other.clients]
        assert one.statistics_uplink_bytes == other.statistics_uplink_bytes


def test_each_client_is_asked_once_for_each_work(there: Any) -> None:
    asked = [(order.round, order.work, order.client_id, order.mode) for order in there[1].orders]
    modes = {0: "ptq", 1: "qat", 2: "fp"}
    fits = [[(number, "fit", client, modes[client]) for client in range(3)] for number in (1, 2)]
    statistics = [[(number, "statistics", client, "fp") for client in range(3)] for number in (1, 2)]
    assert asked == fits[0] + statistics[0] + fits[1] + statistics[1]


FITS: dict[Any, Any] = {
    (1, 0): lambda reply: Reply(missing="no answer within 3 s", is_late=True),
    (1, 1): lambda reply: replace(reply, payload=reply.payload[:-1]),
    (2, 0): lambda reply: Reply(missing="its node failed: gone"),
    (2, 1): lambda reply: replace(reply, text='{"record": {"round": "two"}}'),
    (2, 2): lambda reply: replace(reply, text=_of_another_client(reply.text)),
}
STATISTICS: dict[Any, Any] = {(1, 2): lambda reply: replace(reply, payload=b"garbage")}


@pytest.fixture(scope="module")
def with_failures(text: str) -> list[RoundRecord]:
    """The rounds of a run in which nodes fail, by round and client."""

    def meddle(order: Order, reply: Reply) -> Reply:
        table = FITS if order.work == "fit" else STATISTICS
        return table.get((order.round, order.client_id), lambda given: given)(reply)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = run_on(NodesHere(text, meddle), "small", text)
    told = [str(each.message) for each in caught]
    for begin in ("round 1: no batch statistics of client 2: ", "round 2: no usable update arrived"):
        assert any(each.startswith(begin) for each in told), told
    return rounds_of(run)


@pytest.mark.parametrize(
    ("number", "client_id", "status", "reason"),
    [
        (1, 0, "late", "no answer within 3 s"),
        (1, 1, "quarantined", "bytes, expected"),
        (1, 2, "ok", ""),
        (2, 0, "quarantined", "its node failed: gone"),
        (2, 1, "quarantined", "its answer cannot be read: record.round: "),
        (2, 2, "quarantined", "its answer is of client 1, round 2"),
    ],
)
def test_a_node_that_fails_is_recorded(
    with_failures: list[RoundRecord], number: int, client_id: int, status: str, reason: str
) -> None:
    record = with_failures[number].clients[client_id]
    assert (record.client_id, record.status) == (client_id, status)
    assert reason in record.reason


def test_a_round_goes_on_with_the_other_nodes(with_failures: list[RoundRecord]) -> None:
    before, first, second = with_failures
    assert (first.usable, second.usable) == (1, 0)
    assert first.metrics["fp/val_loss"] != before.metrics["fp/val_loss"]
    assert second.metrics["fp/val_loss"] == first.metrics["fp/val_loss"], "the model stays"


def _of_another_client(text: str) -> str:
    record = Answer.of_text(text).record
    assert record is not None
    return Answer(replace(record, client_id=1)).to_text()


def test_what_a_clients_code_raises_ends_the_run_where_it_shall(text: str) -> None:
    def fail(order: Order, reply: Reply) -> Reply:
        record = Answer.of_text(reply.text).record
        assert record is not None
        return Reply(Answer(replace(record, status="quarantined", reason="RuntimeError: boom")).to_text())

    text = text.replace("trainer:", "trainer:\n  on_client_error: raise")
    with pytest.raises(RunError, match=r"client 2, on its node, in round 1: RuntimeError: boom"):
        run_on(NodesHere(text, fail), "small", text)
