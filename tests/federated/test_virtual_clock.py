"""The virtual clock: the roofline, fed with each client's own steps, device and payloads."""

from collections.abc import Sequence
from typing import Any

import pytest

from fedhq_lightning.analysis.hardware import LayerCost, round_seconds
from fedhq_lightning.devices import Fleet
from fedhq_lightning.federated.client_trainer import FitOptions
from fedhq_lightning.federated.virtual_clock import VirtualClock
from fedhq_lightning.types import MODES, ClientId

LAYER = LayerCost("layer", "linear", 1e9, 4e4, 1e4, 2e4, quantizable=True)


def clock(
    sizes: dict[ClientId, int], options: FitOptions | None = None, fleet: str = "uniform", **changes: Any
) -> VirtualClock:
    ids: Sequence[ClientId] = list(sizes)
    settings: dict[str, Any] = {"download_bytes": 10_000, "upload_bytes": 2_000}
    return VirtualClock(
        Fleet.resolve(fleet, 0), ids, [LAYER], 8, sizes.__getitem__, options or FitOptions(), **(settings | changes)
    )


@pytest.mark.parametrize(
    ("options", "size", "steps", "fullness"),
    [
        (FitOptions(1), 16, 2, 1.0),
        (FitOptions(3), 16, 6, 1.0),
        (FitOptions(2), 17, 6, 17 / 24),
        (FitOptions(1), 3, 1, 3 / 8),
        (FitOptions(None, 5), 16, 5, 1.0),
        (FitOptions(None, 5, accumulate_grad_batches=4), 16, 10, 1.0),  # a window ends with its epoch
        (FitOptions(None, 5, accumulate_grad_batches=4), 40, 14, 1.0),  # 5 batches are 2 steps
        (FitOptions(2, accumulate_grad_batches=4), 16, 4, 1.0),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_is_the_roofline_of_the_clients_own_batches(
    options: FitOptions, size: int, steps: int, fullness: float, mode: Any
) -> None:
    there = clock({"a": size}, options)
    wanted = round_seconds(there.profile("a"), mode, [LAYER], steps, 10_000, 2_000, batch_scale=fullness)
    assert there.time("a", mode) == wanted
    assert there.seconds("a", mode) == wanted.total > 0


@pytest.mark.parametrize("options", [FitOptions(3), FitOptions(None, 6)])
def test_a_partial_batch_that_is_dropped_costs_nothing(options: FitOptions) -> None:
    there = clock({"a": 17, "b": 7}, options, drop_last=True)
    wanted = round_seconds(there.profile("a"), "fp", [LAYER], 6, 10_000, 2_000, batch_scale=1.0)
    assert there.time("a", "fp") == wanted
    assert there.time("b", "fp").compute_seconds == 0


def test_more_examples_take_longer_and_payloads_count() -> None:
    there = clock({0: 8, 1: 80})
    assert there.seconds(1, "fp") > there.seconds(0, "fp")
    heavier = clock({0: 8, 1: 80}, upload_bytes=2_000_000)
    assert heavier.time(0, "fp").upload_seconds == pytest.approx(1000 * there.time(0, "fp").upload_seconds)
    assert heavier.time(0, "fp").compute_seconds == there.time(0, "fp").compute_seconds


def test_devices_are_dealt_by_position() -> None:
    ids: list[ClientId] = [f"client-{number}" for number in range(30)]
    there = clock(dict.fromkeys(ids, 8), fleet="mixed")
    fleet = Fleet.resolve("mixed", 0)
    assert [there.profile(each).name for each in ids] == [fleet.profile(position).name for position in range(30)]
    assert len({there.profile(each).name for each in ids}) == 3
    assert [there.position(each) for each in ids] == list(range(30))


def test_a_million_clients_need_no_table() -> None:
    there = VirtualClock(
        Fleet.resolve("mixed", 0), range(1_000_000), [LAYER], 8, lambda client_id: 8, FitOptions(), 1000, 1000
    )
    assert there._positions is None
    assert there.position(999_999) == 999_999
    assert there.seconds(999_999, "ptq") > 0


def test_precision_is_passed_on() -> None:
    slow, fast = clock({0: 80}, fleet="uniform"), clock({0: 80}, fleet="uniform", precision="bf16")
    wanted = round_seconds(fast.profile(0), "fp", [LAYER], 10, 10_000, 2_000, batch_scale=1.0, precision="bf16")
    assert fast.time(0, "fp") == wanted
    assert slow.time(0, "fp").compute_seconds >= fast.time(0, "fp").compute_seconds
