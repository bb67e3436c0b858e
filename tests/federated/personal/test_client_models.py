"""Each client predicts with its own model: the global one and its own layers, as they were after the round."""

from typing import Any

import pytest
import torch
from torch import nn

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.quantize import QuantScheme, convert
from fedhq_lightning.run.client_store import PERSONAL, ClientStore
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.evaluated_clients import EvaluatedClient
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import StateDict

from ...small_federation import SmallModule
from ...trainer.runs import fit, last_state, records
from ..test_evaluation_round import HoldingBack
from .test_personal_layers import Normed

pytestmark = pytest.mark.usefixtures("no_program")


def found_by(module: nn.Module, data: HoldingBack, client_id: Any) -> float:
    """The loss of a model on what a client holds back."""
    inputs, labels = data.client_val_dataloader(client_id).dataset.tensors
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module.eval()(inputs), labels))


def own_model(run: FederatedTrainer, state: StateDict, client: int, round_number: int) -> SmallModule:
    module = SmallModule()
    own = RunDirectory(run.run_dir).client_store.load(client, round_number + 1).get(PERSONAL, {})
    module.load_state_dict(state | own)
    return module


def evaluated(run: FederatedTrainer, number: int) -> dict[Any, EvaluatedClient]:
    found = records(run)[number].evaluation
    assert found is not None
    return {client.client_id: client for client in found.clients}


@pytest.mark.parametrize("scheme", [None, "w3a8"])
def test_clients_evaluate_their_own(scheme: str | None) -> None:
    data = HoldingBack()
    settings: dict[str, Any] = {} if scheme is None else {"scheme": scheme, "callbacks": [FixedAllocator(0.5)]}
    done, state = fit(None, data, personal_layers="net.2", max_rounds=3, clients_per_round=2, **settings)
    assert done.monitored.name == "clients/val_loss/mean"
    assert not any(name.startswith(("fp/val", "quantized/val")) for name in records(done)[-1].metrics)
    for client, found in evaluated(done, 3).items():
        module = own_model(done, state, int(client), 3)
        assert found.metrics["fp/val_loss"] == pytest.approx(found_by(module, data, client), abs=1e-5)
        if scheme is not None:
            on_grid = convert(module, QuantScheme(scheme))
            assert found.metrics["quantized/val_loss"] == pytest.approx(found_by(on_grid, data, client), abs=1e-5)
    assert done.summary["on_clients"]["metric_name"] == "val_loss"
    best = records(done)[done.summary["best_round"]].evaluation
    assert done.summary["on_clients"]["fp"]["mean"] == pytest.approx(
        sum(each.metrics["fp/val_loss"] for each in best.clients) / len(best.clients)  # type: ignore[union-attr]
    )


def test_ditto_has_both_models_evaluated() -> None:
    data = HoldingBack()
    done, state = fit(None, data, ditto=0.1, max_rounds=2)
    for client, found in evaluated(done, 2).items():
        mine = found_by(own_model(done, state, int(client), 2), data, client)
        assert found.metrics["fp/val_loss"] == pytest.approx(mine, abs=1e-5)
    assert "fp/val_loss" in records(done)[2].metrics
    assert (done.run_dir / "model").exists()


def test_statistics_of_their_own_are_taken_anew_in_both_views() -> None:
    data = HoldingBack()
    done, state = fit(Normed(), data, personal_layers="batch_norm", max_rounds=2, scheme="w3a8")
    for client, found in evaluated(done, 2).items():
        own = RunDirectory(done.run_dir).client_store.load(int(client), 3)[PERSONAL]
        batch = data.calibration_batch(client)[0]
        losses = {}
        for view in ("fp", "quantized"):
            module = Normed()
            module.load_state_dict({name: state[name] for name in module.state_dict()} | own)
            first = module.net[0] if view == "fp" else convert(module, QuantScheme("w3a8")).net[0]
            with torch.no_grad():
                values = first(batch)
            module.net[1].running_mean, module.net[1].running_var = values.mean(0), values.var(0, correction=0)
            losses[view] = found_by(module if view == "fp" else convert(module, QuantScheme("w3a8")), data, client)
        assert found.metrics["fp/val_loss"] == pytest.approx(losses["fp"], abs=1e-4)
        assert found.metrics["quantized/val_loss"] == pytest.approx(losses["quantized"], abs=1e-3)


def test_statistics_of_their_own_cost_virtual_time() -> None:
    """Of who evaluates longest at least: a forward pass over its first batch in each view."""

    def seconds(is_retaken: bool) -> float:
        settings = {"personal_layers": "batch_norm", "scheme": "w3a8", "max_rounds": 1}
        done, _ = fit(Normed(), HoldingBack(), retake_batch_statistics=is_retaken, **settings)
        found = records(done)[1].evaluation
        assert found is not None
        return found.virtual_seconds

    assert seconds(True) > seconds(False)


def test_what_clients_had_after_the_best_round_stays() -> None:
    """The best round is an early one, and every later one drops what no checkpoint needs."""

    class Worse(SmallModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.net[0].weight.norm())

    done, _ = fit(Worse(lr=0.3), HoldingBack(), personal_layers="net.2", max_rounds=6)
    assert done.summary["best_round"] == 1
    names = {each.name for each in done.run_dir.glob("client_state/0/*")}
    assert names == {f"round-{number:06d}.state" for number in (1, 4, 5, 6)}


def test_a_store_keeps_what_each_checkpoint_would_deploy(tmp_path: Any) -> None:
    saved: list[int] = []
    store = ClientStore(tmp_path, lambda: saved)
    best: list[int] = []
    store.best_rounds = best
    for number in range(1, 8):
        store.save(0, number, {PERSONAL: {"a": torch.tensor(float(number))}})
        if number in (2, 5):
            best.append(number)
        saved[:] = [*saved, number][-2:]
    kept = {each.name for each in tmp_path.glob("0/*")}
    assert kept == {f"round-{number:06d}.state" for number in (5, 6, 7)} | {"round-000005.state"}
    assert float(store.load(0, 6)[PERSONAL]["a"]) == 5.0


def test_the_last_round_is_a_models_own(tmp_path: Any) -> None:
    done, state = fit(None, HoldingBack(), personal_layers="net.2", max_rounds=1)
    assert torch.equal(last_state(done)["net.2.weight"], SmallModule().state_dict()["net.2.weight"])
    assert not (done.run_dir / "model").exists()
    assert done.summary["metric_fp"] == pytest.approx(records(done)[1].metrics["fp/clients/val_loss/mean"])
    assert state.keys() == SmallModule().state_dict().keys()
