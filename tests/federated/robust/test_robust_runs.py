"""Whole runs under a robust rule: whole, on two processes and resumed, attacked, and with too few updates."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedOpt
from fedhq_lightning.federated.privacy import CentralPrivacy
from fedhq_lightning.federated.robust import Bulyan, CoordinateMedian, Krum, RobustRule, TrimmedMean
from fedhq_lightning.federated.secure import SecureAggregation
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.trainer import FederatedTrainer

from ...small_federation import SmallData, SmallModule, same_bits, trainer
from ...three_ways import NORMED, run_three_ways


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"trainer.robust_rule": {"class_path": "Bulyan", "init_args": {"num_attackers": 0}}},
            marks=pytest.mark.slow,
        ),
        {
            "trainer.robust_rule": {"class_path": "GeometricMedian"},
            "trainer.uplink": "weights",
            "trainer.retake_batch_statistics": False,
        },
    ],
    ids=["Bulyan", "GeometricMedian"],
)
def test_whole_on_two_processes_and_resumed(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = run_three_ways(tmp_path, NORMED | changes, monkeypatch)
    weights = [(run / "model" / "weights.safetensors").read_bytes() for run in runs]
    assert weights[1] == weights[0]
    assert weights[2] == weights[0]
    assert len(RunDirectory(runs[0]).read_rounds()) == 4


def fitted(folder: Path, **settings: Any) -> tuple[FederatedTrainer, SmallModule]:
    module, done = SmallModule(), trainer(default_root_dir=folder, **settings)
    done.writes_model = False
    done.fit(module, SmallData([20, 13, 8, 27, 16]))
    return done, module


def test_the_servers_optimizer_steps_towards_what_the_rule_gives(tmp_path: Path) -> None:
    by_rule = fitted(tmp_path / "rule", robust_rule=CoordinateMedian(), max_rounds=1)[1]
    by_optimizer = fitted(
        tmp_path / "optimizer",
        robust_rule=CoordinateMedian(),
        max_rounds=1,
        aggregator=FedOpt(partial(torch.optim.SGD, lr=1.0)),
    )[1]
    by_mean = fitted(tmp_path / "mean", max_rounds=1)[1]
    for name, value in by_optimizer.state_dict().items():
        torch.testing.assert_close(value, by_rule.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert not same_bits(by_mean.state_dict(), by_rule.state_dict())


@pytest.mark.parametrize("uplink", ["delta", "weights"])
@pytest.mark.parametrize("scheme", ["w4a8", "w2a8"])
def test_a_client_that_sends_a_thousand_times_too_much_changes_next_to_nothing(
    uplink: Any, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "scheme": scheme,
        "uplink": uplink,
        "callbacks": FixedAllocator("qat"),
        "robust_rule": TrimmedMean(1),
        "max_norm_ratio": None,
        "max_rounds": 3,
    }
    honest = fitted(tmp_path / "honest", **settings)[0].summary["metric_fp"]
    up = Link.up

    def attacked(self: Link, local: Any, received: Any, round_number: int, client_id: Any, *others: Any) -> bytes:
        if client_id == 1:
            local = {name: received[name] - 1000 * (value - received[name]) for name, value in local.items()}
        return up(self, local, received, round_number, client_id, *others)

    monkeypatch.setattr(Link, "up", attacked)
    assert fitted(tmp_path / "attacked", **settings)[0].summary["metric_fp"] < 2 * honest + 0.1
    del settings["robust_rule"]
    assert not fitted(tmp_path / "mean", **settings)[0].summary["metric_fp"] < 2 * honest + 0.1


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Krum(2), "Krum takes 2 . num_attackers . 3 = 7 updates or more, and a cohort has 5 clients"),
        (TrimmedMean(3), "TrimmedMean takes 2 . num_attackers . 1 = 7"),
        (Bulyan(1), "Bulyan takes 4 . num_attackers . 3 = 7"),
    ],
)
def test_cohorts_that_are_too_small_are_refused_before_round_1(rule: RobustRule, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fitted(tmp_path, robust_rule=rule)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"privacy": CentralPrivacy(1.0, 1.0, 1e-3)}, "privacy: CentralPrivacy and robust_rule cannot be together"),
        (
            {"secure_aggregation": SecureAggregation(), "max_norm_ratio": None},
            "secure_aggregation and robust_rule cannot be together: a rule compares updates",
        ),
    ],
)
def test_what_needs_sums_is_refused(other: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        trainer(robust_rule=CoordinateMedian(), **other)


def test_a_round_with_too_few_updates_leaves_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    up = Link.up

    def broken(self: Link, local: Any, received: Any, round_number: int, client_id: Any, *others: Any) -> bytes:
        if (round_number, client_id) == (2, 3):
            local = {name: value * float("nan") for name, value in local.items()}
        return up(self, local, received, round_number, client_id, *others)

    monkeypatch.setattr(Link, "up", broken)
    words = "round 2: 4 usable updates arrived, fewer than the 5 that Krum takes; the global model stays"
    with pytest.warns(UserWarning, match=words), pytest.warns(UserWarning, match="not finite"):
        done, _ = fitted(tmp_path, robust_rule=Krum(1), max_rounds=3)
    losses = [record.metric_fp for record in RunDirectory(done.run_dir).read_rounds()]
    assert losses[2] == losses[1] != losses[3]
