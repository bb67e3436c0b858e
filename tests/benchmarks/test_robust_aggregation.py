"""The benchmark of robust rules: what its attackers do, and what it makes of outcomes."""

import attacks
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner
from robust_aggregation import MEAN, NO_ATTACK, RULES, Cell, Outcome, accuracy_table, cells_of, keep, kept_in, verdict
from robust_cost import cost

from fedhq_lightning.data import Digits
from fedhq_lightning.federated.robust import Krum
from fedhq_lightning.federated.wire import Link

STATE = {"weight": torch.linspace(-1, 1, 4000), "steps": torch.tensor(3)}
LINK = Link(STATE, {}, "weights", "fp32")


def sent(attack: str, client_id: int) -> torch.Tensor:
    local = STATE | {"weight": STATE["weight"] + 0.5}
    with attacks.hostile_updates(attack, frozenset({1}), seed=0):
        return LINK.receive(LINK.up(local, STATE, 1, client_id), 1, client_id)["weight"] - STATE["weight"]


def test_attackers_send_something_else_and_nobody_besides() -> None:
    up = Link.up
    assert torch.allclose(sent("sign flip", 1), torch.tensor(-0.5))
    assert torch.allclose(sent("times ten", 1), torch.tensor(5.0))
    assert float(sent("noise", 1).std()) == pytest.approx(5.0, rel=0.1)
    assert torch.equal(sent("noise", 1), sent("noise", 1))
    for attack in (*attacks.NAMES, NO_ATTACK):
        assert torch.allclose(sent(attack, 2), torch.tensor(0.5))
    assert Link.up is up


def test_attackers_train_on_changed_data_and_nobody_besides() -> None:
    data = attacks.PoisonedData(Digits(batch_size=16), IidPartitioner(num_partitions=4))
    data.poison("backdoor", frozenset({1}))
    for client_id in (0, 1):
        images, labels = next(iter(data.train_dataloader(client_id)))
        has_trigger = bool((images[::2, ..., -4:, -4:] == attacks.with_trigger(images)[0, 0, -1, -1]).all())
        assert has_trigger == (client_id == 1)
        assert bool((labels[::2] == attacks.TARGET).all()) == (client_id == 1)
    torch.testing.assert_close(attacks.with_flipped_labels(images, torch.tensor([0, 4]))[1], torch.tensor([9, 5]))


def test_outcomes_become_a_table_and_a_verdict(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("kept") / "cells.jsonl"
    for cell in cells_of(2, 3, 4):
        is_best = cell.rule == "Krum(4)" and cell.attack != "noise"
        is_plain = (cell.attack, cell.rule) == (NO_ATTACK, MEAN)
        keep(path, cell, Outcome((79.0 if is_best else 80.0 if is_plain else 50.0) + cell.seed, 12.5))
    outcomes = kept_in(path)
    assert len(outcomes) == 2 * 6 * len(RULES)
    table = accuracy_table(outcomes).splitlines()
    assert table[2].startswith("| mean | **80.5 [80.0, 81.0]** | 50.5 [50.0, 51.0] |")
    assert "| `Krum(4)` | **79.5 [79.0, 80.0]** |" in table[6]
    assert table[6].endswith("| 12.5 |")
    assert "sign flip: met, `Krum(4)` -1.0; " in verdict(outcomes)
    assert "noise: missed, " in verdict(outcomes)
    assert Cell(NO_ATTACK, MEAN, 0, 3, 4) in outcomes


def test_cost() -> None:
    payloads = [LINK.up(STATE, STATE, 1, client) for client in range(7)]
    seconds, _ = cost(Krum(2), LINK, payloads, frozenset({"weight"}))
    assert 0 < seconds < 10
