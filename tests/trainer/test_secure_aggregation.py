"""Secure rounds in a run: the model of the plain sum to the bit, whoever drops out, on any number of processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedhq_lightning.callbacks import FixedAllocator, HybridAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedNova, Scaffold
from fedhq_lightning.federated.failing_clients import NoUsableUpdatesError
from fedhq_lightning.federated.payload import PayloadError
from fedhq_lightning.federated.privacy import CentralPrivacy, LocalPrivacy
from fedhq_lightning.federated.robust import CoordinateMedian
from fedhq_lightning.federated.secure import SecureAggregation, masking_client, secure_round
from fedhq_lightning.federated.secure.messages import Kind
from fedhq_lightning.federated.server import ServerRound
from fedhq_lightning.types import ClientId, StateDict

from ..small_federation import SmallData, SmallModule, same_bits
from .runs import checkpoint, fit, records

pytestmark = pytest.mark.usefixtures("no_program", "no_report")
SIZES = (20, 13, 8, 27, 16)


def secure(**settings: Any) -> dict[str, Any]:
    return {"secure_aggregation": SecureAggregation(**settings), "max_norm_ratio": None}


class Drill(SecureAggregation):
    """Loses clients, in every round, before the answers that a test names."""

    def __init__(self, lost: Mapping[ClientId, Kind], **settings: Any) -> None:
        super().__init__(**settings)
        self._lost = lost

    def drops_out(self, round_number: int, client_id: ClientId) -> Kind | None:
        return self._lost.get(client_id)


class NormedModule(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(16))


def drill(lost: Mapping[ClientId, Kind], **settings: Any) -> dict[str, Any]:
    return {"secure_aggregation": Drill(lost, **settings), "max_norm_ratio": None}


@contextmanager
def unmasked() -> Iterator[None]:
    """Clients send their integers as they are, and the server takes nothing off their sum."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (masking_client, secure_round):
            patched.setattr(module, "apply_masks", lambda values, masks: None)
        yield


def run(**settings: Any) -> StateDict:
    return fit(data=SmallData(SIZES), **settings)[1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scheme": "w4a8", "callbacks": FixedAllocator(0.5)},
        {"scheme": "w2a8", "callbacks": FixedAllocator("ptq"), "uplink": "weights", "downlink": "scheme"},
        {"scheme": "w4a8s", "callbacks": FixedAllocator("qat")},
        {"aggregator": Scaffold()},
    ],
    ids=["float", "w4a8", "weights", "static ranges", "scaffold"],
)
@pytest.mark.parametrize("bits", [32, 64])
def test_the_model_is_that_of_the_plain_sum(settings: dict[str, Any], bits: int) -> None:
    masked = run(**secure(bits=bits), **settings)
    with unmasked():
        assert same_bits(run(**secure(bits=bits), **settings), masked)
    for name, value in run(**settings).items():  # on no grid at all
        assert torch.allclose(masked[name], value, rtol=0, atol=1e-6 if bits == 64 else 1e-3), name


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregator": FedNova()},
        {"scheme": "w4a8", "uplink_bits": 4, "error_feedback": True},
        {"personal_layers": ["net.2.*"]},
        {"privacy": LocalPrivacy(noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-3)},
    ],
    ids=["FedNova", "error feedback", "personal layers", "LocalPrivacy"],
)
def test_with_what_else_a_run_may_have(settings: dict[str, Any]) -> None:
    masked = run(**secure(), **settings)
    with unmasked():
        assert same_bits(run(**secure(), **settings), masked)
    plain = run(**{"max_norm_ratio": None}, **settings)
    assert all(torch.allclose(masked[name], value, rtol=0, atol=1e-6) for name, value in plain.items())


def test_the_model_does_not_depend_on_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(**secure())
    monkeypatch.setattr(secure_round, "derive_seed", lambda *purpose: hash(purpose))
    assert same_bits(run(**secure()), one)


@pytest.mark.filterwarnings("ignore:round .. client 1 is quarantined")
@pytest.mark.parametrize("step", [Kind.KEYS, Kind.SHARES, Kind.INPUT])
def test_clients_that_drop_out_are_left_out_of_the_sum(step: Kind) -> None:
    masked, there = drill({1: step}), drill({1: Kind.INPUT})
    one, state = fit(data=SmallData(SIZES), **masked)
    with unmasked():
        assert same_bits(run(**there), state)
    for record in records(one)[1:]:
        assert [each.status for each in record.clients] == ["ok", "quarantined", "ok", "ok", "ok"]
        assert record.clients[1].reason == "it dropped out of secure aggregation"


def test_a_client_that_is_lost_after_its_input_counts() -> None:
    assert same_bits(run(**drill({1: Kind.REVEALED})), run(**secure()))


@pytest.mark.filterwarnings("ignore:round .. client 1 is quarantined")
def test_late_and_failing_clients_drop_out() -> None:
    class Fails(SmallModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if len(batch[0]) == 13:
                raise RuntimeError("no")
            return super().training_step(batch, batch_idx)

    data = SmallData((20, 13, 8, 60, 16), batch_size=32)
    there, masked = fit(Fails(), data, round_deadline=0.0034, **secure(threshold=3))
    statuses = [each.status for each in records(there)[1].clients]
    assert statuses == ["ok", "quarantined", "ok", "late", "ok"]
    _, plain = fit(Fails(), data, round_deadline=0.002, max_norm_ratio=None)
    assert all(torch.allclose(masked[name], value, rtol=0, atol=1e-6) for name, value in plain.items())


@pytest.mark.filterwarnings("ignore:round .. client . is quarantined", "ignore:round 2. .* model stays")
@pytest.mark.parametrize("step", [Kind.KEYS, Kind.SHARES, Kind.INPUT, Kind.REVEALED])
def test_below_the_threshold_the_model_stays(step: Kind) -> None:
    with (
        pytest.warns(UserWarning, match="round 1: .*; the global model stays as it is"),
        pytest.raises(NoUsableUpdatesError, match="none of 2 rounds had 4 usable updates"),
    ):
        fit(data=SmallData(SIZES), **drill(dict.fromkeys((0, 1, 2), step)))


@pytest.mark.filterwarnings("ignore:round .. client . is quarantined")
def test_a_value_beyond_the_grid_is_kept_back_by_its_client() -> None:
    class Large(SmallModule):
        def on_train_end(self) -> None:
            if self.trainer.callback_metrics["train_loss"] is not None and self.trainer.global_step == 2:
                self.net[0].weight.data[0, 0] = 100.0

    there, _ = fit(Large(), SmallData(SIZES), **secure(threshold=3))
    found = [each for each in records(there)[1].clients if each.status == "quarantined"]
    assert [each.client_id for each in found] == [1, 4]
    assert "net.0.weight: a magnitude of 100" in found[0].reason
    assert "beyond secure_aggregation.max_value 64" in found[0].reason


def test_the_server_is_given_nothing_that_it_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    receive = ServerRound.receive

    def noting(self: ServerRound, client_id: ClientId, payload: bytes, *others: Any, **named: Any) -> None:
        with pytest.raises(PayloadError):
            self._server.link.open(payload, self.number, client_id)
        sent.append(payload)
        receive(self, client_id, payload, *others, **named)

    monkeypatch.setattr(ServerRound, "receive", noting)
    run(**secure())
    assert len(sent) == 2 * len(SIZES)


def test_bytes_are_recorded_and_charged() -> None:
    there, plain = (fit(data=SmallData(SIZES), **settings)[0] for settings in (secure(), {}))
    num_values = sum(each.numel() for each in SmallModule().state_dict().values())
    found, before = records(there)[1], records(plain)[1]
    for each, other in zip(found.clients, before.clients, strict=True):
        assert 8 * (num_values + 1) < each.uplink_bytes < 8 * num_values + 1500
        assert each.downlink_bytes > other.downlink_bytes
        assert each.upload_seconds / other.upload_seconds == pytest.approx(each.uplink_bytes / other.uplink_bytes)
        assert each.download_seconds / other.download_seconds == pytest.approx(
            each.downlink_bytes / other.downlink_bytes
        )
    assert found.uplink_bytes == sum(each.uplink_bytes for each in found.clients)
    assert there.summary["wall_phases"]["secure"] > 0


def test_a_resumed_run_goes_on_as_if_nothing_had_been() -> None:
    whole = checkpoint(fit(data=SmallData(SIZES), max_rounds=3, **secure())[0])["state"]
    begun = fit(data=SmallData(SIZES), max_rounds=1, **secure())[0]
    again = fit(data=SmallData(SIZES), max_rounds=3, ckpt_path=begun.run_dir, **secure())[0]
    assert same_bits(checkpoint(again)["state"]["global_state"], whole["global_state"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_norm_ratio": 20.0}, "secure_aggregation and max_norm_ratio cannot be together: .*set max_norm_ratio"),
        ({"clients_per_round": 2}, "with 2 clients a round: a sum hides what each adds to it from 3 on"),
        ({"threshold": 6}, "threshold 6: a cohort has 5 clients, so no round could ever be unmasked"),
        ({"threshold": 2}, "threshold 2: must be above half of the 5 clients of a cohort, .*; 3 or more"),
        (
            {"privacy": CentralPrivacy(noise_multiplier=1.0, clip_norm=1.0, delta=1e-3)},
            "secure_aggregation and privacy: CentralPrivacy cannot be together: the server clips each update",
        ),
        ({"robust_rule": CoordinateMedian()}, "secure_aggregation and robust_rule cannot be together"),
        (
            {"callbacks": HybridAllocator(divergence="updates"), "scheme": "w4a8"},
            "secure_aggregation and the divergence of HybridAllocator cannot be together: .*total_variation",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_round_1(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = {"max_norm_ratio": None, **settings}
    asked = SecureAggregation(given.pop("threshold", 0.66))
    with pytest.raises(ConfigurationError, match=words):
        run(secure_aggregation=asked, default_root_dir=tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_batch_statistics_travel_within_the_sum_or_not_at_all() -> None:
    with pytest.raises(ConfigurationError, match="retake_batch_statistics cannot be together"):
        fit(NormedModule(), SmallData(SIZES), **secure())
    _, state = fit(NormedModule(), SmallData(SIZES), retake_batch_statistics=False, **secure())
    with unmasked():
        _, plain = fit(NormedModule(), SmallData(SIZES), retake_batch_statistics=False, **secure())
    assert same_bits(state, plain)


@pytest.mark.parametrize(
    "given",
    [{"threshold": 0.5}, {"threshold": 1}, {"threshold": 1.1}, {"threshold": True}, {"bits": 16}, {"max_value": 0}],
)
def test_values_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"secure_aggregation {next(iter(given))} .*must be"):
        SecureAggregation(**given)


def test_a_share_of_the_cohort_is_rounded_up_as_it_is_written() -> None:
    assert [SecureAggregation(share).threshold_of(100) for share in (0.55, 0.66, 0.655, 1.0)] == [55, 66, 66, 100]
