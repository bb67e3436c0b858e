"""A client goes on with what it kept when its last update came, whatever its node has done since."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.flower.messages import Order, Reply
from fedhq_lightning.flower.server_run import run_on

from ..small_federation import same_bits
from .nodes_here import NO_ANSWER, NodesHere, text_of
from .test_server_run import model_of, rounds_of
from .test_state_on_nodes import CHANGES

Meddle = Callable[[Order, Reply], Reply]


@pytest.fixture
def text(tmp_path: Path) -> str:
    return text_of(CHANGES | {"trainer.default_root_dir": str(tmp_path)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The model of a run that nothing stops, with nodes that always answer."""
    root = tmp_path_factory.mktemp("whole")
    return model_without(text_of(CHANGES | {"trainer.default_root_dir": str(root)}), set())


def model_without(text: str, away: set[tuple[int, int]]) -> dict[str, Tensor]:
    """The model of a run that nothing stops, with nodes that hear nothing in some rounds."""
    nodes = NodesHere(text)
    nodes.away = away
    return model_of(run_on(nodes, "small", text))


def stopped_run(text: str, tmp_path: Path, number: int) -> tuple[NodesHere, Path]:
    """A run whose server dies in a round, when two of its three nodes have answered."""

    def die(order: Order, reply: Reply) -> Reply:
        if is_dying and (order.round, order.client_id) == (number, 0):
            raise OSError("the server dies")
        return reply

    is_dying = True
    nodes = NodesHere(text, die)
    with pytest.raises(OSError, match="the server dies"):
        run_on(nodes, "small", text)
    is_dying = False
    (found,) = tmp_path.glob("small/*-*")
    return nodes, found


def test_what_a_node_kept_of_rounds_that_were_given_up_is_forgotten(text: str, tmp_path: Path) -> None:
    nodes, run = stopped_run(text, tmp_path, 3)
    nodes.away = {(2, 1), (3, 1)}
    again = run_on(nodes, "small", text, resume=str(run / "checkpoints" / "round-000001.ckpt"))
    assert [each.clients[1].status for each in rounds_of(again)[1:]] == ["ok", "late", "late", "ok"]
    assert same_bits(model_of(again), model_without(text, nodes.away))


def test_what_a_node_kept_of_an_update_that_came_too_late_is_forgotten(text: str) -> None:
    late = {(1, 0), (3, 1)}
    nodes = NodesHere(text, lambda order, reply: NO_ANSWER if (order.round, order.client_id) in late else reply)
    assert same_bits(model_of(run_on(nodes, "small", text)), model_without(text, late))


@pytest.mark.parametrize("given", ["../latest", "."])
def test_a_run_is_the_same_however_its_folder_is_given_and_its_user_names_it(
    given: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Tensor]
) -> None:
    nodes, run = stopped_run(text, tmp_path, 3)
    renamed = run.rename(run.with_name(f"{run.name}-first-try"))
    (run.parent / "latest").symlink_to(renamed)
    monkeypatch.chdir(renamed)
    again = run_on(nodes, "small", text, resume=given)
    assert len(rounds_of(again)[-1].clients) == len([each for each in nodes.orders if each.round == 4]) == 3
    assert same_bits(model_of(again), whole)


@pytest.mark.parametrize("aggregator", ["Scaffold", "FedAvg"])
def test_a_folder_that_lost_its_name_is_refused_where_clients_keep_something(aggregator: str, tmp_path: Path) -> None:
    keeps = aggregator == "Scaffold"
    changes = {"trainer.aggregator": aggregator, "trainer.error_feedback": keeps}
    text = text_of(CHANGES | changes | {"trainer.default_root_dir": str(tmp_path)})
    nodes, run = stopped_run(text, tmp_path, 2)
    moved = run.rename(run.with_name("first-try"))
    if keeps:
        with pytest.raises(ConfigurationError, match=r"first-try: .* give the folder its name back"):
            run_on(nodes, "small", text, resume=str(moved))
    else:
        assert {each.usable for each in rounds_of(run_on(nodes, "small", text, resume=str(moved)))[1:]} == {3}
