"""Records survive the trip through strict JSON."""

import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.records import ClientRecord, RoundRecord

CLIENT = ClientRecord(
    round=3,
    client_id="hospital-7",
    tier="phone",
    mode="qat",
    status="ok",
    num_examples=120,
    num_steps=8,
    metrics={"train_loss": 0.25},
    fit_wall_seconds=0.5,
    download_seconds=1.0,
    compute_seconds=2.0,
    upload_seconds=4.0,
    uplink_bytes=1000,
    downlink_bytes=4000,
)
ROUND = RoundRecord(
    round=3,
    metrics={"fp/val_accuracy": 0.9, "quantized/val_accuracy": 0.8},
    metric_fp=0.9,
    metric_quantized=0.8,
    wall_seconds=1.5,
    fit_wall_seconds=1.0,
    allocator_seconds=0.001,
    virtual_seconds=7.0,
    total_wall_seconds=4.5,
    total_virtual_seconds=21.0,
    uplink_bytes=2000,
    downlink_bytes=8000,
    mode_counts={"fp": 0, "ptq": 1, "qat": 1},
    quarantined=0,
    late=1,
    clients=(CLIENT, replace(CLIENT, client_id=4, mode="ptq", status="late")),
)


def through_json(record: RoundRecord) -> RoundRecord:
    return RoundRecord.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))


def test_round_trip_is_exact() -> None:
    read = through_json(ROUND)
    assert read == ROUND
    assert [client.client_id for client in read.clients] == ["hospital-7", 4]
    assert ClientRecord.from_json(CLIENT.to_json()) == CLIENT


def test_rounds_of_earlier_versions_did_not_wait() -> None:
    data = replace(ROUND, wait_seconds=3.5).to_json()
    assert RoundRecord.from_json(data).wait_seconds == 3.5
    del data["wait_seconds"]
    assert RoundRecord.from_json(data).wait_seconds == 0.0


def test_to_json_is_plain() -> None:
    data = ROUND.to_json()
    assert type(data["clients"]) is list
    assert data["clients"][0]["metrics"] is not CLIENT.metrics
    data["mode_counts"]["qat"] = 99
    assert ROUND.mode_counts["qat"] == 1


def test_floats_keep_every_bit() -> None:
    awkward = 0.1 + 0.2
    assert through_json(replace(ROUND, metric_fp=awkward, metrics={"x": 1e-300})) == replace(
        ROUND, metric_fp=awkward, metrics={"x": 1e-300}
    )


def test_not_finite_values_survive_strict_json() -> None:
    read = through_json(replace(ROUND, metric_fp=math.nan, metric_quantized=-math.inf, metrics={"loss": math.inf}))
    assert read.metric_fp is not None
    assert math.isnan(read.metric_fp)
    assert read.metric_quantized == -math.inf
    assert read.metrics == {"loss": math.inf}


def test_not_evaluated_stays_none() -> None:
    read = through_json(replace(ROUND, metric_fp=None, metric_quantized=None, metrics={}))
    assert (read.metric_fp, read.metric_quantized, read.monitored) == (None, None, None)


def test_the_deployed_model_is_what_is_monitored() -> None:
    assert ROUND.monitored == 0.8
    assert replace(ROUND, metric_quantized=None).monitored == 0.9
    assert replace(ROUND, metric_quantized=0.0).monitored == 0.0


def test_virtual_seconds_are_the_sum_of_the_parts() -> None:
    assert CLIENT.virtual_seconds == 7.0


def test_missing_fields_are_named_and_later_ones_left_aside() -> None:
    data = ROUND.to_json()
    assert RoundRecord.from_json(data | {"boundary": 0.5}) == ROUND
    del data["late"]
    with pytest.raises(ConfigurationError, match=r"late: Field required"):
        RoundRecord.from_json(data)


def test_records_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ROUND.late = 2  # type: ignore[misc]  # what is tested
