"""Fine-tuning after the last round: what clients train, what is told of it, and what it costs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.client_evaluation import ClientEvaluation
from fedhq_lightning.federated.fine_tuning import FineTuning
from fedhq_lightning.federated.fine_tuning_round import usual_mode
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy
from fedhq_lightning.report.formats import summary_rows
from fedhq_lightning.report.on_clients_section import on_clients_section
from fedhq_lightning.run.client_store import PERSONAL
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.run import Run
from fedhq_lightning.run.state import RunState
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import StateDict

from ..small_federation import SmallData, SmallModule, same_bits
from ..trainer.runs import checkpoint, fit, records
from .algorithms.plain_rounds import batches, plus
from .personal.test_personal_layers import NAMES, Normed, assert_near
from .test_evaluation_round import BACK, HoldingBack, by_hand

RATE = 0.2

pytestmark = pytest.mark.usefixtures("no_program")


def tuned(run: FederatedTrainer, position: int) -> StateDict:
    """The model that a client has tuned; empty where it has not."""
    return RunDirectory(run.run_dir).fine_tuned.load(position, 1000).get(PERSONAL, {})


def own(run: FederatedTrainer, position: int, round_number: int) -> StateDict:
    return RunDirectory(run.run_dir).client_store.load(position, round_number + 1).get(PERSONAL, {})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> FederatedTrainer:
    """Two epochs at half the rate, of a model of which later rounds at a tiny rate changed nothing."""
    with pytest.MonkeyPatch.context() as patch:
        from ..trainer.conftest import make_quick

        make_quick(patch)
        return fit(
            SmallModule(lr=RATE, momentum=0.0),
            HoldingBack(),
            fine_tuning=FineTuning(local_epochs=2, lr_factor=0.5),
            round_lr=0.1,
            fleet="mixed",
            default_root_dir=tmp_path_factory.mktemp("runs"),
        )[0]


def test_each_client_trains_the_deployed_model(plain: FederatedTrainer) -> None:
    """`lr_factor` counts, `round_lr` does not."""
    state = checkpoint(plain)["state"]
    for client in range(4):
        weights = [state["best_state"][name].double() for name in NAMES]
        for gradients in batches(HoldingBack(), 0, state["best_round"], client, 2, "fine-tuning"):
            weights = plus(weights, gradients(weights), -RATE / 2)
        assert_near(tuned(plain, client), weights, NAMES)


def test_figures_are_of_the_same_clients_before_and_after(plain: FederatedTrainer) -> None:
    told, on_clients = plain.summary["fine_tuning"], plain.summary["on_clients"]
    assert (told["clients"], told["without"], told["examples"]) == (3, 0, sum(BACK))  # one holds nothing back
    assert told["before"]["fp"] == on_clients["fp"]
    losses = {client: by_hand(tuned(plain, client), BACK[client])["fp/val_loss"] for client in (0, 1, 3)}
    assert told["metric_name"] == "val_loss"
    assert told["after"]["fp"]["mean"] == pytest.approx(sum(losses.values()) / 3, abs=1e-6)
    assert told["after"]["fp"]["worst_decile"] == pytest.approx(max(losses.values()), abs=1e-6)
    assert told["after"]["quantized"] is None
    assert sum(tier["clients"] for tier in told["tiers"]) == 3
    assert [mode["mode"] for mode in told["modes"]] == ["fp"]


def test_costs_virtual_time_and_bytes_after_the_rounds(plain: FederatedTrainer) -> None:
    told, last = plain.summary["fine_tuning"], records(plain)[-1]
    assert plain.summary["virtual_seconds"] == last.total_virtual_seconds + told["virtual_seconds"]
    (slowest,) = (each for each in last.clients if each.compute_seconds == max(c.compute_seconds for c in last.clients))
    # Twice the epochs of a round, without sending anything up.
    assert told["virtual_seconds"] == pytest.approx(slowest.download_seconds + 2 * slowest.compute_seconds)
    assert told["downlink_bytes"] == sum(each.downlink_bytes for each in last.clients)
    assert (
        plain.summary["downlink_bytes"]
        == sum(record.downlink_bytes for record in records(plain)) + (told["downlink_bytes"])
    )


def test_report_and_terminal_tell_it(plain: FederatedTrainer) -> None:
    run = Run(plain.run_dir)
    after, before = (f"{run.summary['fine_tuning'][when]['fp']['mean']:.4f}" for when in ("after", "before"))
    assert f"mean {after} (before {before})" in dict(summary_rows(run.summary))["after fine-tuning"]
    assert f"{before} → {after}" in on_clients_section(run)
    assert run.summary["wall_phases"]["fine_tuning"] > 0


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (SmallModule, {}),
        (SmallModule, {"personal_layers": "net.2"}),
        (Normed, {"personal_layers": "batch_norm"}),
        (Normed, {"ditto": 0.1}),
    ],
    ids=["one model", "layers", "statistics", "Ditto"],
)
def test_begins_as_the_model_that_the_client_has(module: Any, settings: dict[str, Any]) -> None:
    """With a rate of next to nothing it stays that; running statistics move, and are taken anew before and after."""
    done, _ = fit(
        module(),
        HoldingBack(),
        **(settings | {"fine_tuning": FineTuning(local_steps=1, lr_factor=1e-12)}),
        scheme="w4a8",
        callbacks=[FixedAllocator(0.5)],
    )
    state, told = checkpoint(done)["state"], done.summary["fine_tuning"]
    for client in range(4):
        start = state["best_state"] | own(done, client, state["best_round"])
        for name in NAMES if module is SmallModule else ("net.0.weight", "net.1.weight", "net.3.bias"):
            torch.testing.assert_close(tuned(done, client)[name], start[name], rtol=0, atol=1e-6)
    for view in ("fp", "quantized"):
        assert told["after"][view] == pytest.approx(told["before"][view], abs=1e-5)


def test_clients_tune_as_they_trained_the_last_time() -> None:
    modes = {0: "qat", 1: "ptq", 2: "fp", 3: "qat"}
    done, _ = fit(
        None,
        HoldingBack((5, 5, 5, 5)),
        **{"scheme": "w4a8", "callbacks": [FixedAllocator(modes)], "max_rounds": 1, "clients_per_round": 3},
        fine_tuning=FineTuning(),
    )
    trained = records(done)[1].mode_counts
    usual = max(("fp", "ptq", "qat"), key=lambda mode: trained[mode])
    took_part = {client.client_id: client.mode for client in records(done)[1].clients}
    wanted = [took_part.get(client, usual) for client in modes]
    told = {mode["mode"]: mode["clients"] for mode in done.summary["fine_tuning"]["modes"]}
    assert told == {mode: wanted.count(mode) for mode in ("fp", "ptq", "qat") if mode in wanted}
    assert usual_mode(RunState({})) == "fp"


def test_who_tunes_is_who_evaluates() -> None:
    asked = ClientEvaluation(clients=2)
    done, _ = fit(None, HoldingBack((5, 5, 5, 5)), evaluate_clients=asked, fine_tuning=FineTuning(), max_rounds=1)
    assert done.summary["fine_tuning"]["clients"] == 2
    assert sum(bool(tuned(done, client)) for client in range(4)) == 2


def test_who_cannot_train_keeps_what_it_had() -> None:
    class LeftOut(SmallModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.current_epoch == 1:  # rounds have one
                raise ValueError("the second epoch")
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="while client 2 fine-tuned in fp.*the second epoch.*keeps the model"):
        done, _ = fit(LeftOut(), HoldingBack(), fine_tuning=FineTuning(local_steps=2), max_rounds=1)
    assert done.summary["fine_tuning"]["without"] == 1  # it has one batch
    assert [bool(tuned(done, client)) for client in range(4)] == [True, True, False, True]


def test_a_run_made_longer_is_that_of_as_many_rounds(tmp_path: Path) -> None:
    asked = {"fine_tuning": FineTuning(local_steps=2), "personal_layers": "net.2"}
    shorter, _ = fit(None, HoldingBack(), max_rounds=1, **asked)
    whole, _ = fit(None, HoldingBack(), max_rounds=2, **asked)
    longer, _ = fit(None, HoldingBack(), shorter.run_dir, max_rounds=2, **asked)
    assert longer.summary["fine_tuning"] == whole.summary["fine_tuning"]
    for client in range(4):
        assert same_bits(tuned(longer, client), tuned(whole, client))
    assert len(list(longer.run_dir.glob("fine_tuned/0/*"))) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"local_epochs": 0}, "fine_tuning: local_epochs 0: must be a whole number, 1 or more"),
        ({"local_steps": 2.5}, r"fine_tuning: local_steps 2\.5: must be a whole number"),
        ({"local_steps": 1, "local_epochs": 1}, "fine_tuning: local_epochs and local_steps are both given"),
        ({"lr_factor": 0.0}, r"fine_tuning: lr_factor 0\.0: must be greater than 0"),
    ],
)
def test_values_that_cannot_be(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FineTuning(**asked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": SmallData()}, "fine_tuning: no client of SmallData holds examples back; set its client_holdout"),
        ({"evaluate_clients": False}, "fine_tuning and evaluate_clients: false cannot be together"),
        ({"final_evaluation": False}, "fine_tuning and final_evaluation: false cannot be together"),
        ({"privacy": CentralPrivacy(1.0, clip_norm=1.0, delta=1e-3)}, "privacy and fine_tuning cannot be together"),
    ],
    ids=["nothing held back", "nobody evaluates", "not evaluated", "private"],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(**({"data": HoldingBack(), "default_root_dir": tmp_path} | settings), fine_tuning=FineTuning())
    assert not list(tmp_path.glob("*"))
