"""Whole private runs: what is spent and told, what ends them, resume, and what they are refused for."""

import csv
import json
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from typing_extensions import override

from fedhq_lightning.callbacks import FixedAllocator, FreeQatAllocator, HybridAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedNova, FedOpt, FedProx, Scaffold
from fedhq_lightning.federated.privacy import CentralPrivacy, LocalPrivacy
from fedhq_lightning.federated.privacy.accounting import Accountant
from fedhq_lightning.quantize import LaneOptions
from fedhq_lightning.run.logged_rows import logged_values
from fedhq_lightning.trainer import FederatedTrainer

from ...small_federation import SmallData, SmallModule, same_bits
from ...trainer.runs import Recorder, checkpoint, fit, records

pytestmark = pytest.mark.usefixtures("no_program")
CENTRAL = CentralPrivacy(1.0, 0.5, 1e-3)
LOCAL = LocalPrivacy(1.0, 1.0, 1e-3)
KINDS = {
    "central, fp": lambda: {"privacy": CENTRAL, "aggregator": FedOpt(lambda p: torch.optim.SGD(p, 1.0, 0.9))},
    "central, lanes": lambda: {"privacy": CENTRAL, "scheme": "w4a8", "callbacks": [FixedAllocator(0.5)]},
    "central, models": lambda: {"privacy": CENTRAL, "scheme": "w4a8", "uplink": "weights", "downlink": "scheme"},
    "central, scaffold": lambda: {"privacy": CENTRAL, "aggregator": Scaffold()},
    "local, fp": lambda: {"privacy": LOCAL, "aggregator": FedProx(0.1)},
    "local, lanes": lambda: {"privacy": LOCAL, "scheme": "w2a8", "callbacks": [FixedAllocator(0.5)], "local_steps": 2},
}


class TestWhatIsSpent:
    def test_centrally_every_round_is_a_step_whoever_comes(self) -> None:
        there, _ = fit(privacy=CENTRAL, clients_per_round=2, max_rounds=3)
        accountant = Accountant(CENTRAL)
        expected = [accountant.epsilon(0.5, number) for number in range(4)]
        assert [record.epsilon for record in records(there)] == expected
        assert there.summary["privacy"]["epsilon"] == expected[-1]
        assert there.summary["privacy"]["ended_by_budget"] is False
        assert json.loads((there.run_dir / "summary.json").read_text())["privacy"] == there.summary["privacy"]
        rows = list(csv.DictReader((there.run_dir / "metrics.csv").read_text().splitlines()))
        assert [float(row["epsilon"]) for row in rows] == expected
        assert [logged_values(record)["privacy/epsilon"] for record in records(there)] == expected

    def test_locally_each_client_by_its_own_steps_and_the_largest_is_told(self) -> None:
        there, _ = fit(privacy=LOCAL, clients_per_round=2, max_rounds=4)
        accountant, steps, largest = Accountant(LOCAL), dict.fromkeys(range(4), 0), 0.0
        for record in records(there):
            for client in record.clients:
                steps[client.client_id] += client.num_steps  # type: ignore[index]  # they are numbers
            spent = [accountant.epsilon(min(1.0, 8 / size), steps[each]) for each, size in enumerate((20, 13, 8, 27))]
            largest = max(spent)
            assert record.epsilon == largest
        assert checkpoint(there)["state"]["private_steps"] == {each: count for each, count in steps.items() if count}
        assert there.summary["privacy"]["epsilon"] == largest > 0

    def test_locally_nothing_that_training_logged_is_told(self) -> None:
        there, _ = fit(privacy=LOCAL)
        assert not any(client.metrics for record in records(there) for client in record.clients)
        assert not any(name.startswith("train/") for record in records(there) for name in record.metrics)
        assert there.summary["worst_client"] is None

    def test_without_privacy_nothing_changes(self) -> None:
        there, _ = fit()
        assert [record.epsilon for record in records(there)] == [None] * 3
        assert there.summary["privacy"] is None


class TestBudget:
    def test_ends_before_the_round_that_would_pass_it(self) -> None:
        privacy = CentralPrivacy(1.0, 0.5, 1e-3, max_epsilon=4.0)
        with pytest.warns(UserWarning, match="the privacy budget ends the run after round 2 of 6"):
            there, state = fit(privacy=privacy, clients_per_round=2, max_rounds=6, eval_every_n_rounds=5)
        assert [record.round for record in records(there)] == [0, 1, 2]
        last = records(there)[-1]
        assert last.epsilon is not None
        assert last.epsilon <= 4.0 < Accountant(privacy).epsilon(0.5, 3)
        assert last.metric_fp is not None, "the last round is evaluated"
        assert there.summary["rounds"] == 2
        assert there.summary["privacy"]["ended_by_budget"] is True
        assert (there.run_dir / "model").is_dir()
        _, same = fit(privacy=CENTRAL, clients_per_round=2, max_rounds=2, eval_every_n_rounds=5)
        assert same_bits(state, same)

    def test_locally_who_has_spent_it_is_drawn_no_more(self) -> None:
        privacy = LocalPrivacy(1.0, 1.0, 1e-3, max_epsilon=5.0)
        with pytest.warns(UserWarning, match="the privacy budget ends the run after round"):
            there, _ = fit(privacy=privacy, clients_per_round=3, max_rounds=30)
        everyone = records(there)
        assert there.summary["privacy"]["ended_by_budget"] is True
        assert there.summary["rounds"] < 30
        assert all((record.epsilon or 0) <= 5.0 for record in everyone)
        assert len(everyone[-1].clients) < 3, "others had spent theirs"

    @pytest.mark.parametrize(
        ("privacy", "words"),
        [
            (CentralPrivacy(1.0, 0.5, 1e-3, max_epsilon=1.0), "max_epsilon 1 is passed by the first round, whose"),
            (LocalPrivacy(0.5, 0.5, 1e-3, max_epsilon=1.0), "max_epsilon 1 is passed by the first local fit, whose"),
        ],
    )
    def test_one_that_lasts_for_nothing(self, privacy: Any, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            fit(privacy=privacy, clients_per_round=2)


class TestBits:
    @pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
    def test_goes_on_as_if_nothing_had_happened(self, make: Callable[[], dict[str, Any]]) -> None:
        def interrupt(there: FederatedTrainer, record: Any) -> None:
            if record.round == 2:
                raise KeyboardInterrupt

        def settings(recorder: Recorder) -> dict[str, Any]:
            given = {"max_rounds": 3, "clients_per_round": 2} | make()
            return given | {"callbacks": [recorder, *given.get("callbacks", [])]}

        unbroken, state = fit(**settings(Recorder()))
        from ...small_federation import trainer

        broken = trainer(**settings(Recorder(interrupt)))
        with pytest.raises(KeyboardInterrupt):
            broken.fit(SmallModule(), SmallData())
        resumed, again = fit(ckpt_path=broken.run_dir, **settings(Recorder()))
        assert same_bits(state, again)
        assert not same_bits(state, {name: each for name, each in SmallModule().state_dict().items()})
        assert [record.epsilon for record in records(resumed)] == [record.epsilon for record in records(unbroken)]

    def test_an_empty_cohort_moves_the_model_by_noise(self) -> None:
        there, _ = fit(privacy=CENTRAL, clients_per_round=1, max_rounds=6, seed=1)
        sizes = [sum(record.mode_counts.values()) for record in records(there)[1:]]
        assert 0 in sizes
        assert len(set(sizes)) > 1
        assert all(record.epsilon for record in records(there)[1:])


class Normed(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(16))


class WithoutValidation(SmallModule):
    validation_step = L.LightningModule.validation_step  # as where nobody wrote one


class Counting(SmallModule):
    """Sends the mean of its inputs, which is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.mean.copy_(batch[0].mean())
        return super().training_step(batch, batch_idx)


class Plateau(SmallModule):
    @override
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}


class Searching(SmallModule):
    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


class TestRefused:
    @pytest.mark.parametrize("privacy", [CENTRAL, LOCAL], ids=["central", "local"])
    @pytest.mark.parametrize(
        ("settings", "module", "words"),
        [
            ({}, Normed, "net.1 is a BatchNorm layer"),
            ({"retake_batch_statistics": False}, Normed, "net.1 is a BatchNorm layer"),
            ({"scheme": "w4a4s"}, SmallModule, "a scheme with static activation ranges cannot be together"),
            (
                {"callbacks": HybridAllocator(), "scheme": "w4a8"},
                SmallModule,
                "HybridAllocator plans with what clients",
            ),
            ({"callbacks": FreeQatAllocator(), "scheme": "w4a8"}, SmallModule, "take FixedAllocator"),
            (
                {"callbacks": FixedAllocator(0.5, by="divergence"), "scheme": "w4a8"},
                SmallModule,
                "FixedAllocator plans with what clients tell of their data",
            ),
            ({}, WithoutValidation, "train_loss is what clients find on their own data"),
        ],
        ids=["BatchNorm", "averaged BatchNorm", "static ranges", "hybrid", "free QAT", "by divergence", "train loss"],
    )
    def test_what_would_tell_of_clients(self, privacy: Any, settings: Any, module: Any, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            fit(module(), privacy=privacy, **settings)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"privacy": LOCAL, "evaluate_clients": True}, "privacy and evaluate_clients cannot be together"),
            ({"privacy": CENTRAL, "aggregator": FedNova()}, "privacy: CentralPrivacy and aggregator: FedNova"),
            ({"privacy": CENTRAL, "min_clients": 2}, "privacy: CentralPrivacy and min_clients above 1"),
            ({"privacy": LOCAL, "accumulate_grad_batches": 2}, "privacy: LocalPrivacy and accumulate_grad_batches"),
            ({"privacy": LOCAL, "lanes": LaneOptions(bias_correction=True)}, "and lanes.bias_correction cannot"),
        ],
    )
    def test_settings_that_exclude_each_other(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            fit(**settings)

    @pytest.mark.parametrize(
        ("module", "words"),
        [
            (Counting, "training changed mean, which clients send and to which no noise is added"),
            (Plateau, "ReduceLROnPlateau sets the learning rate by what training logged"),
            (Searching, "LBFGS asks for gradients more than once a step"),
        ],
    )
    def test_what_a_local_fit_shows(self, module: Any, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            fit(module(), privacy=LOCAL)

    def test_an_availability_trace(self, tmp_path: Any) -> None:
        trace = tmp_path / "trace.csv"
        header = "client,device,available_from_seconds,available_until_seconds,period_seconds"
        rows = [f"{each},laptop-ryzen-7-7840u,0,100,1000" for each in range(4)]
        trace.write_text("\n".join([header, *rows, ""]))
        with pytest.raises(ConfigurationError, match="the fleet has an availability trace"):
            fit(privacy=CENTRAL, fleet=str(trace))
