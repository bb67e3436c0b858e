"""The roofline by hand, its kernels, and what differs between devices."""

import dataclasses

import pytest

from fedhq_lightning.devices import (
    DeviceProfile,
    Fleet,
    LayerCost,
    available_profiles,
    load_profile,
    round_seconds,
    step_seconds,
)
from fedhq_lightning.devices.calibration import PLAIN
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.devices.roofline import step_seconds_by_scale
from fedhq_lightning.types import MODES

DEVICE = DeviceProfile(
    name="test",
    fp32_flops_per_second=100.0,
    bf16_flops_per_second=200.0,
    int8_training_gain=4.0,
    memory_bytes_per_second=10.0,
    memory_bytes=1.0,
    operator_seconds=0.5,
    uplink_bits_per_second=8.0,
    downlink_bits_per_second=80.0,
    ptq_kernel="int8",
    qat_kernel="int8",
)
NO_INT8 = dataclasses.replace(DEVICE, int8_training_gain=None, ptq_kernel="fp", qat_kernel="fused")
NO_BF16 = dataclasses.replace(DEVICE, bf16_flops_per_second=None)
LAYER = LayerCost("layer", "linear", 1e9, 8.0, 16.0, 24.0, True, rows=512.0, weight_shape=(512, 512))
SMALL = dataclasses.replace(LAYER, rows=31.0)
LIGHT = dataclasses.replace(LAYER, forward_flops=1.0)
# The update of 8 bytes, the operators of the layer, of its update and of the step.
REST = 2.4 + 3 * 0.5
FAKE = LaneKernels({"qat": {"layer": "fake"}})
OF_VALUES = LaneKernels(backward_of_values=frozenset({"layer"}))


def test_fp_by_hand():
    assert step_seconds(DEVICE, "fp", [LAYER]) == pytest.approx(3 * 1e7 + REST)
    assert step_seconds(DEVICE, "fp", [LIGHT]) == pytest.approx(3 * 4.8 + REST)


def test_ptq_by_hand():
    passes = ((16 + 8 + 2 * 24) * 2.25 + 48 * 2) / 10
    assert step_seconds(DEVICE, "ptq", [LAYER]) == pytest.approx(3 * 1e9 / 400 + passes + REST + 0.5)
    moved = (24 / 4 + 24) + (32 / 4 + 16) + (40 / 4 + 8)
    assert step_seconds(DEVICE, "ptq", [LIGHT]) == pytest.approx(moved / 10 + passes + REST + 0.5)


def test_qat_with_an_int8_forward_and_gradients_of_values_by_hand():
    """The backward is in bf16 wherever that is fast, as the lane has it, whatever the run's precision."""
    passes = ((16 + 8) * (2.25 + 0.25 + 0.5) + 24 * (2 + 1.5)) / 10
    found = step_seconds(DEVICE, "qat", [LAYER], kernels=OF_VALUES)
    assert found == pytest.approx(1e9 / 400 + 2e9 / 200 + passes + REST + 0.5)
    passes = ((16 + 8) * (2.25 + 0.25 + 1) + 24 * (2 + 2)) / 10
    found = step_seconds(NO_BF16, "qat", [LAYER], kernels=OF_VALUES)
    assert found == pytest.approx(1e9 / 400 + 2e9 / 100 + passes + REST + 0.5)


def test_qat_with_integer_gradients_takes_what_ptq_takes():
    for layer in (LAYER, LIGHT):
        assert step_seconds(NO_BF16, "qat", [layer]) == step_seconds(NO_BF16, "ptq", [layer])
    assert step_seconds(NO_INT8, "qat", [LAYER], kernels=OF_VALUES) == step_seconds(NO_INT8, "qat", [LAYER])
    searched = LaneKernels(searched=frozenset({"layer"}))
    ptq = step_seconds(DEVICE, "ptq", [LAYER])
    assert step_seconds(DEVICE, "qat", [LAYER], kernels=searched) == pytest.approx(ptq + 8 * 10 / 10)


def test_fake_quantization_by_hand():
    fused = 3e7 + (8 + 16) * 3 / 10 + REST + 0.5
    assert step_seconds(NO_INT8, "qat", [LAYER]) == pytest.approx(fused)
    assert step_seconds(DEVICE, "qat", [LAYER], kernels=FAKE) == pytest.approx(fused + 16 * 9 / 10)
    weight_only = dataclasses.replace(LAYER, quantizes_activations=False)
    assert step_seconds(DEVICE, "qat", [weight_only]) == pytest.approx(3e7 + 8 * 3 / 10 + REST + 0.5)
    searched = LaneKernels(searched=frozenset({"layer"}))
    assert step_seconds(NO_INT8, "qat", [LAYER], kernels=searched) == pytest.approx(fused + 8 * 10 / 10)


def test_frozen_layers_by_hand():
    """Two products of three, one form of the gradient of two, and no update."""
    frozen, light = (dataclasses.replace(layer, trained=False) for layer in (LAYER, LIGHT))
    assert step_seconds(DEVICE, "fp", [frozen]) == pytest.approx(2 * 1e7 + 2 * 0.5)
    passes = ((16 + 8 + 24) * 2.25 + 40 * 2) / 10
    moved = (24 / 4 + 24) + (32 / 4 + 16)
    assert step_seconds(DEVICE, "ptq", [light]) == pytest.approx(moved / 10 + passes + 2 * 0.5 + 0.5)
    passes = ((16 + 8) * (2.25 + 0.25 + 0.5) + 24 * (2 + 1.5)) / 10
    found = step_seconds(DEVICE, "qat", [light], kernels=OF_VALUES)
    assert found == pytest.approx((24 / 4 + 24) / 10 + 48 / 10 + passes + 2 * 0.5 + 0.5)
    other = dataclasses.replace(LAYER, kind="other")
    without_update = step_seconds(DEVICE, "fp", [other]) - 2.4 - 0.5
    assert step_seconds(DEVICE, "fp", [dataclasses.replace(other, trained=False)]) == pytest.approx(without_update)


def test_small_layers_are_not_int8():
    assert step_seconds(DEVICE, "ptq", [SMALL]) == step_seconds(DEVICE, "fp", [SMALL])
    assert step_seconds(DEVICE, "qat", [SMALL]) == step_seconds(NO_INT8, "qat", [SMALL])
    # A batch that is not full can fall below the size from which integers pay.
    assert step_seconds(DEVICE, "ptq", [LAYER], 0.05) == step_seconds(DEVICE, "fp", [LAYER], 0.05)
    assert step_seconds(DEVICE, "ptq", [LAYER], 0.5) < step_seconds(DEVICE, "fp", [LAYER], 0.5)


def test_without_int8_kernels_ptq_is_fp():
    assert step_seconds(NO_INT8, "ptq", [LAYER]) == step_seconds(NO_INT8, "fp", [LAYER])


def test_layers_left_alone_take_the_same_in_every_mode():
    plain = dataclasses.replace(LAYER, quantizable=False)
    assert len({step_seconds(DEVICE, mode, [plain]) for mode in MODES}) == 1


def test_grouped_convolutions_stay_fp_under_ptq_only():
    grouped = dataclasses.replace(LAYER, grouped=True)
    assert step_seconds(DEVICE, "ptq", [grouped]) == step_seconds(DEVICE, "fp", [grouped])
    assert step_seconds(DEVICE, "qat", [grouped]) > step_seconds(DEVICE, "fp", [grouped])


def test_bf16_helps_where_the_device_has_it():
    assert step_seconds(DEVICE, "fp", [LAYER], precision="bf16") < step_seconds(DEVICE, "fp", [LAYER])
    assert step_seconds(NO_BF16, "fp", [LAYER], precision="bf16") == step_seconds(NO_BF16, "fp", [LAYER])
    assert step_seconds(DEVICE, "ptq", [LAYER], precision="bf16") == step_seconds(DEVICE, "ptq", [LAYER])


def test_a_slow_int8_unit_is_not_hidden():
    slow = dataclasses.replace(DEVICE, int8_training_gain=0.6)
    assert step_seconds(slow, "ptq", [LAYER]) > step_seconds(slow, "fp", [LAYER])


def test_layers_add_up_and_batches_scale():
    one = step_seconds(DEVICE, "ptq", [LAYER])
    assert step_seconds(DEVICE, "ptq", [LAYER, LAYER]) == pytest.approx(2 * one - 0.5)
    assert step_seconds(DEVICE, "ptq", []) == 0
    assert step_seconds(DEVICE, "ptq", [LAYER], 0.5) == step_seconds(DEVICE, "ptq", [LAYER.scaled(0.5)])
    assert one / 2 < step_seconds(DEVICE, "ptq", [LAYER], 0.5) < one


@pytest.mark.parametrize("mode", MODES)
def test_many_sizes_at_once_are_the_same_as_one_by_one(mode):
    convolution = dataclasses.replace(LAYER, kind="convolution", weight_shape=(64, 64, 3, 3), rows=3000.0)
    layers, scales = [LAYER, SMALL, convolution, LIGHT], [0.01, 0.2, 0.5, 1.0]
    found = step_seconds_by_scale(DEVICE, mode, layers, scales)
    assert found == pytest.approx([step_seconds(DEVICE, mode, layers, each) for each in scales], rel=1e-12)


def test_a_round_is_download_steps_and_upload():
    time = round_seconds(DEVICE, "qat", [LAYER], num_steps=3, download_bytes=20, upload_bytes=5)
    assert time.download_seconds == pytest.approx(2.0)
    assert time.upload_seconds == pytest.approx(5.0)
    assert time.compute_seconds == pytest.approx(3 * step_seconds(DEVICE, "qat", [LAYER]))
    assert time.total == pytest.approx(7.0 + time.compute_seconds)


# Much arithmetic per byte: products decide.
SQUARE = 4096
MATRIX = 4.0 * SQUARE**2
HEAVY = LayerCost(
    *("layer", "linear", 2.0 * SQUARE**3, MATRIX, MATRIX, MATRIX, True), rows=SQUARE, weight_shape=(SQUARE, SQUARE)
)


@pytest.mark.parametrize("name", ["phone-snapdragon-855", "laptop-ryzen-7-7840u", "raspberry-pi-4"])
def test_the_gain_from_ptq_is_the_designs_bound_or_a_little_less(name):
    """QAT over PTQ is about 1, with gradients of values (1/k + 2)/(3/k), in fast bf16 (1/k + 2/b)/(3/k) (DESIGN, 6)."""
    profile = load_profile(name)
    k = profile.int8_training_gain
    b = (profile.bf16_flops_per_second or profile.fp32_flops_per_second) / profile.fp32_flops_per_second
    bound = 1.0 if k is None else (1 / k + 2 / b) / (3 / k)
    ptq = step_seconds(profile, "ptq", [HEAVY])
    assert step_seconds(profile, "qat", [HEAVY], kernels=OF_VALUES) / ptq == pytest.approx(bound, rel=0.1)
    assert step_seconds(profile, "qat", [HEAVY]) / ptq == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_devices_are_in_their_order(mode):
    seconds = {name: step_seconds(load_profile(name), mode, [HEAVY]) for name in available_profiles()}
    order = ["gpu-a100-40gb", "jetson-orin-nano", "laptop-ryzen-7-7840u", "phone-snapdragon-855", "raspberry-pi-4"]
    found = sorted(order, key=seconds.__getitem__)
    assert found == order
    assert seconds["gpu-a100-40gb"] < seconds["jetson-nano"] < seconds["raspberry-pi-4"]


def test_a_small_model_is_no_faster_on_a_gpu():
    """What it takes is to start operators, not arithmetic."""
    tiny = LayerCost("layer", "linear", 1e4, 400.0, 400.0, 400.0, True, rows=4.0, weight_shape=(10, 10))
    names = ("gpu-a100-40gb", "laptop-ryzen-7-7840u")
    gpu, laptop = (step_seconds(load_profile(name), "fp", [tiny] * 9) for name in names)
    assert gpu > laptop


def test_tiers_of_the_mixed_fleet_are_far_apart():
    seconds = [step_seconds(profile, "ptq", [HEAVY]) for profile, _ in Fleet.resolve("mixed", 0).mix]
    assert sorted(seconds) == seconds
    assert seconds[1] > 3 * seconds[0]
    assert seconds[2] > 3 * seconds[1]


def test_calibration_moves_what_it_names():
    changed = dataclasses.replace(PLAIN, linear_int8=2.0)
    assert step_seconds(DEVICE, "ptq", [LAYER], calibration=changed) > step_seconds(DEVICE, "ptq", [LAYER])
    assert step_seconds(DEVICE, "fp", [LAYER], calibration=changed) == step_seconds(DEVICE, "fp", [LAYER])


def test_unknown_mode():
    with pytest.raises(ValueError, match="unknown mode 'int8'"):
        step_seconds(DEVICE, "int8", [LAYER])  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ValueError, match="unknown mode 'int8'"):
        step_seconds_by_scale(DEVICE, "int8", [LAYER], [1.0])  # type: ignore[arg-type]  # the point of the test
