"""The virtual clock: the roofline, fed with each client's own steps, device and payloads."""

from collections.abc import Sequence
from dataclasses import replace
from time import process_time
from typing import Any

import pytest

from fedhq_lightning.devices import Fleet, training_memory
from fedhq_lightning.devices.calibration import PLAIN, Calibration
from fedhq_lightning.devices.roofline import LayerCost, round_seconds, step_seconds
from fedhq_lightning.devices.virtual_clock import VirtualClock
from fedhq_lightning.types import MODES, ClientId, FitOptions

LAYER = LayerCost("layer", "linear", 1e9, 4e4, 1e4, 2e4, quantizable=True, rows=64, weight_shape=(512, 512))


def clock(
    sizes: dict[ClientId, int], options: FitOptions | None = None, fleet: Any = "uniform", **changes: Any
) -> VirtualClock:
    ids: Sequence[ClientId] = list(sizes)
    settings: dict[str, Any] = {"download_bytes": 10_000, "upload_bytes": 2_000}
    return VirtualClock(
        Fleet.resolve(fleet, 0), ids, [LAYER], 8, sizes.__getitem__, options or FitOptions(), **(settings | changes)
    )


@pytest.mark.parametrize(
    ("options", "size", "batches"),
    [
        (FitOptions(1), 16, {8: 2}),
        (FitOptions(3), 16, {8: 6}),
        (FitOptions(2), 17, {8: 4, 1: 2}),
        (FitOptions(1), 3, {3: 1}),
        (FitOptions(None, 5), 16, {8: 5}),
        (FitOptions(None, 5), 17, {8: 4, 1: 1}),
        (FitOptions(None, 5, accumulate_grad_batches=4), 16, {8: 10}),  # a window ends with its epoch
        (FitOptions(None, 5, accumulate_grad_batches=4), 40, {8: 14}),  # 5 batches are 2 steps
        (FitOptions(2, accumulate_grad_batches=4), 16, {8: 4}),
        (FitOptions(1), 0, {}),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_is_the_roofline_of_the_clients_own_batches(
    options: FitOptions, size: int, batches: dict[int, int], mode: Any
) -> None:
    there = clock({"a": size}, options, calibration=PLAIN)
    profile, found = there.profile("a"), there.time("a", mode)
    steps = [number * step_seconds(profile, mode, [LAYER], examples / 8) for examples, number in batches.items()]
    assert found.compute_seconds == pytest.approx(sum(steps), rel=1e-12)
    assert found.download_seconds == 8 * 10_000 / profile.downlink_bits_per_second
    assert there.seconds("a", mode) == found.total > 0


@pytest.mark.parametrize("options", [FitOptions(3), FitOptions(None, 6)])
def test_a_partial_batch_that_is_dropped_costs_nothing(options: FitOptions) -> None:
    there = clock({"a": 17, "b": 7}, options, drop_last=True, calibration=PLAIN)
    wanted = round_seconds(there.profile("a"), "fp", [LAYER], 6, 10_000, 2_000, batch_scale=1.0)
    assert there.time("a", "fp").total == pytest.approx(wanted.total)
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
    slow, fast = (
        clock({0: 80}, fleet=["laptop-ryzen-7-7840u"], precision=precision, calibration=PLAIN)
        for precision in ("fp32", "bf16")
    )
    wanted = round_seconds(fast.profile(0), "fp", [LAYER], 10, 10_000, 2_000, batch_scale=1.0, precision="bf16")
    assert fast.time(0, "fp").total == pytest.approx(wanted.total)
    assert slow.time(0, "fp").compute_seconds > fast.time(0, "fp").compute_seconds


def test_the_shipped_calibration_is_used() -> None:
    by_default, plain = clock({0: 80}), clock({0: 80}, calibration=PLAIN)
    slowed = clock({0: 80}, calibration=Calibration(linear_float=2.0))
    assert by_default.seconds(0, "fp") != plain.seconds(0, "fp")
    assert slowed.time(0, "fp").compute_seconds > 1.5 * plain.time(0, "fp").compute_seconds


def test_another_fleet_is_another_clock_for_the_same_clients() -> None:
    there = clock(dict.fromkeys(range(30), 80), fleet="mixed")
    phones = there.on(Fleet.resolve("uniform", 0))
    assert {phones.tier(each) for each in range(30)} == {"phone-snapdragon-855"}
    assert len({there.tier(each) for each in range(30)}) == 3
    phone = next(each for each in range(30) if there.tier(each) == "phone-snapdragon-855")
    assert phones.time(phone, "qat") == there.time(phone, "qat")
    # The same name with another gain is another device.
    (profile,) = {profile for profile, _ in Fleet.resolve("uniform", 0).mix}
    slow = there.on(Fleet("slow", ((replace(profile, int8_training_gain=1.0), 1),), 0))
    assert slow.seconds(phone, "ptq") > there.seconds(phone, "ptq")


def test_what_a_device_cannot_hold_does_not_fit() -> None:
    (profile,) = {profile for profile, _ in Fleet.resolve("uniform", 0).mix}
    there = clock({0: 8, 1: 80})
    assert all(there.fits(each, mode) for each in (0, 1) for mode in MODES)
    # Weights, gradients, two states of Adam and the step's own are about 2e5 bytes; a half of the memory is usable.
    needed = training_memory.training_bytes(profile, "fp", [LAYER])
    small = Fleet("small", ((replace(profile, memory_bytes=2 * needed), 1),), 0)
    assert [mode for mode in MODES if there.on(small).fits(1, mode)] == ["fp"]
    assert needed == pytest.approx(4 * 4e4 + 1e4 + 3e4)


def test_a_forward_pass_is_a_part_of_a_step() -> None:
    there = clock({0: 8, 1: 3, 2: 0}, fleet=["raspberry-pi-4"])
    assert 0 < there.forward_seconds(1) < there.forward_seconds(0) < there.time(0, "fp").compute_seconds
    assert there.forward_seconds(0, "qat") > there.forward_seconds(0, "fp")
    assert there.forward_seconds(2) == 0


def test_a_cohort_of_a_thousand_is_no_work() -> None:
    layers = [replace(LAYER, name=str(number)) for number in range(60)]
    sizes = [10 + (7 * number) % 990 for number in range(1000)]
    fleet = Fleet.resolve("mixed", 0)
    there = VirtualClock(fleet, range(1000), layers, 32, sizes.__getitem__, FitOptions(2), 1000, 1000)
    there.seconds(0, "ptq")
    taken = []
    for _ in range(4):
        started = process_time()
        for client_id in range(1000):
            there.seconds(client_id, "ptq")
            there.seconds(client_id, "qat")
        taken.append(process_time() - started)
    assert min(taken[1:]) < 0.05
