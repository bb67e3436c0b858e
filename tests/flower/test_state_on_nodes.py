"""What clients keep from round to round lies on their nodes, and the bits are the simulator's."""

from typing import Any

import pytest

from fedhq_lightning.flower.messages import Order, Reply
from fedhq_lightning.flower.server_run import run_on
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import same_bits
from .nodes_here import NodesHere, text_of
from .test_server_run import model_of, rounds_of

CHANGES: dict[str, Any] = {
    "model.class_path": "fedhq_lightning.models.MLP",
    "model.init_args": {"image_size": 8, "hidden_sizes": [16]},
    "trainer.max_rounds": 4,
    "trainer.aggregator": "Scaffold",
    "trainer.error_feedback": True,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return text_of(CHANGES | {"trainer.default_root_dir": str(tmp_path_factory.mktemp("runs"))})


@pytest.fixture(scope="module")
def here(text: str) -> FederatedTrainer:
    trainer, module, data = resolve("small", text).instantiate()
    trainer.fit(module, data)
    return trainer


@pytest.fixture(scope="module")
def nodes(text: str) -> NodesHere:
    """Of which one is started again after round 2."""
    started = NodesHere(text, lambda order, reply: _with_restart(started, order, reply))
    return started


@pytest.fixture(scope="module")
def there(text: str, nodes: NodesHere) -> FederatedTrainer:
    return run_on(nodes, "small", text)


def _with_restart(nodes: NodesHere, order: Order, reply: Reply) -> Reply:
    if (order.round, order.client_id) == (2, 1):
        nodes.restart(1)
    return reply


def metrics_of(run: FederatedTrainer) -> list[Any]:
    return [(each.metrics, each.uplink_bytes) for each in rounds_of(run)]


def test_the_bits_are_the_simulators_though_a_node_restarts(here: FederatedTrainer, there: FederatedTrainer) -> None:
    assert metrics_of(there) == metrics_of(here)
    assert same_bits(model_of(there), model_of(here))
    assert not (there.run_dir / "client_state").exists()


def test_nodes_keep_what_checkpoints_need(there: FederatedTrainer, nodes: NodesHere) -> None:
    saved = [int(path.stem.partition("-")[2]) for path in there.run_dir.glob("checkpoints/round-*.ckpt")]
    for place in range(3):
        files = sorted(nodes.folder.glob(f"{there.run_dir.name}/{place}/0/*"))
        kept = [int(path.stem.partition("-")[2]) for path in files]
        assert kept[-1] == 4
        assert set(saved) <= {0, *kept}
        assert len(kept) <= len(saved) + 2


def test_a_run_goes_on_from_a_checkpoint_with_what_its_clients_had_then(
    here: FederatedTrainer, there: FederatedTrainer, text: str, nodes: NodesHere
) -> None:
    earlier = sorted(there.run_dir.glob("checkpoints/round-*.ckpt"))[-2]
    again = run_on(nodes, "small", text, resume=str(earlier))
    assert again.run_dir == there.run_dir
    assert metrics_of(again) == metrics_of(here)
    assert same_bits(model_of(again), model_of(here))
