"""Seconds that fits took on nodes decide in place of the virtual clock's, and are replayed to the same bits."""

from dataclasses import replace
from typing import Any

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.flower.messages import Answer, Order, Reply
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
    "trainer.local_steps": 6,
    "trainer.fleet": "mixed",
    "trainer.callbacks": [
        {
            "class_path": "fedhq_lightning.callbacks.HybridAllocator",
            "init_args": {"window": 1, "qat_from": 0.0, "boundary": {"slack": 0.0, "share": 0.0}},
        }
    ],
}
LONG = {0: 1e6, 1: 2.0, 2: 9.0}
"""Seconds of a client's step as its node tells them, far from what the clock predicts."""
PASSED = 240.0
"""Seconds until an answer came."""


def slowed(order: Order, reply: Reply) -> Reply:
    record = Answer.of_text(reply.text).record
    if record is None:
        return reply
    told = replace(record, fit_wall_seconds=LONG[int(order.client_id)] * (1 + order.round / 7) * record.num_steps)
    return replace(reply, text=Answer(told).to_text(), seconds=PASSED)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("runs"))
    return text_of(CHANGES | {"trainer.default_root_dir": root, "trainer.measured_seconds": True})


@pytest.fixture(scope="module")
def measured(text: str) -> FederatedTrainer:
    return run_on(NodesHere(text, slowed), "small", text)


def run_here(text: str, *flags: str, ckpt_path: str | None = None) -> FederatedTrainer:
    trainer, module, data = resolve("small", text, list(flags)).instantiate()
    trainer.fit(module, data, ckpt_path)
    return trainer


def planned(run: FederatedTrainer) -> list[Any]:
    rounds = [(each.reason, each.allocation, each.virtual_seconds) for each in rounds_of(run)]
    return [rounds, [[(one.mode, one.num_steps) for one in each.clients] for each in rounds_of(run)]]


def test_what_a_fit_took_on_its_node_is_what_it_computed_and_no_more_than_passed(measured: FederatedTrainer) -> None:
    for record in rounds_of(measured):
        for client in record.clients:
            told = LONG[int(client.client_id)] * (1 + record.round / 7) * client.num_steps
            assert client.compute_seconds == client.fit_wall_seconds == min(told, PASSED)
        if record.clients:
            assert record.virtual_seconds == max(each.virtual_seconds for each in record.clients)


@pytest.fixture(scope="module")
def replayed(measured: FederatedTrainer, text: str) -> FederatedTrainer:
    return run_here(text, f"--trainer.measured_seconds={measured.run_dir}")


def test_a_replay_here_gives_the_same_plans_and_bits(
    measured: FederatedTrainer, replayed: FederatedTrainer, text: str
) -> None:
    assert planned(replayed) == planned(measured)
    assert same_bits(model_of(replayed), model_of(measured))
    assert [each.metrics for each in rounds_of(replayed)] == [each.metrics for each in rounds_of(measured)]
    modelled = run_here(text, "--trainer.measured_seconds=false")
    assert planned(modelled)[1] != planned(measured)[1], "the seconds decide nothing here"
    assert not same_bits(model_of(modelled), model_of(measured))


def test_a_replay_that_is_resumed_goes_on_with_it(
    measured: FederatedTrainer, replayed: FederatedTrainer, text: str
) -> None:
    checkpoint = sorted(replayed.run_dir.glob("checkpoints/round-*.ckpt"))[-2]
    resumed = run_here(text, f"--trainer.measured_seconds={measured.run_dir}", ckpt_path=str(checkpoint))
    assert planned(resumed) == planned(measured)
    assert same_bits(model_of(resumed), model_of(measured))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("3", r"3/rounds.jsonl: no such file; give the folder of a run"),
        ("true --trainer.round_deadline=3", "round_deadline and measured_seconds cannot be together: "),
    ],
    ids=["no run", "a deadline"],
)
def test_what_cannot_be_measured_is_refused(text: str, given: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        run_here(text, *f"--trainer.measured_seconds={given}".split())
