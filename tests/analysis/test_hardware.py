import dataclasses

import pytest

from fedhq_lightning.analysis import LayerCost, round_seconds, step_seconds
from fedhq_lightning.devices import DeviceProfile, Fleet, load_profile
from fedhq_lightning.types import MODES

DEVICE = DeviceProfile(
    name="test",
    fp32_flops_per_second=100.0,
    bf16_flops_per_second=200.0,
    int8_training_gain=4.0,
    memory_bytes_per_second=10.0,
    memory_bytes=1.0,
    uplink_bits_per_second=8.0,
    downlink_bits_per_second=80.0,
)
NO_INT8 = dataclasses.replace(DEVICE, int8_training_gain=None)
NO_BF16 = dataclasses.replace(DEVICE, bf16_flops_per_second=None)
LAYER = LayerCost("layer", "linear", 1e6, 8.0, 16.0, 24.0, quantizable=True)


def test_fp_by_hand():
    # Compute bound: three products of 1e6 flops at 100 a second, and the update of 8 bytes at 10 a second.
    assert step_seconds(DEVICE, "fp", [LAYER]) == pytest.approx(3 * 1e4 + 2.4)
    # Memory bound: three times 48 bytes.
    light = dataclasses.replace(LAYER, forward_flops=1.0)
    assert step_seconds(DEVICE, "fp", [light]) == pytest.approx(3 * 4.8 + 2.4)


def test_ptq_by_hand():
    passes = 2 * (8 + 16 + 24) * 2.25 / 10
    assert step_seconds(DEVICE, "ptq", [LAYER]) == pytest.approx(3 * 1e6 / 400 + passes + 2.4)
    light = dataclasses.replace(LAYER, forward_flops=1.0)
    moved = (24 / 4 + 24) + (32 / 4 + 16) + (40 / 4 + 8)
    assert step_seconds(DEVICE, "ptq", [light]) == pytest.approx(moved / 10 + passes + 2.4)


def test_qat_by_hand():
    passes = (8 + 16) * (3 + 2.25) / 10
    assert step_seconds(DEVICE, "qat", [LAYER]) == pytest.approx(3e4 + passes + 2.4)
    weight_only = dataclasses.replace(LAYER, quantizes_activations=False)
    assert step_seconds(DEVICE, "qat", [weight_only]) == pytest.approx(3e4 + 8 * 5.25 / 10 + 2.4)


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
    assert step_seconds(DEVICE, "qat", [LAYER], precision="bf16") < step_seconds(DEVICE, "qat", [LAYER])
    assert step_seconds(NO_BF16, "qat", [LAYER], precision="bf16") == step_seconds(NO_BF16, "qat", [LAYER])
    assert step_seconds(DEVICE, "ptq", [LAYER], precision="bf16") == step_seconds(DEVICE, "ptq", [LAYER])


def test_a_slow_int8_unit_is_not_hidden():
    slow = dataclasses.replace(DEVICE, int8_training_gain=0.6)
    assert step_seconds(slow, "ptq", [LAYER]) > step_seconds(slow, "fp", [LAYER])


def test_layers_add_up_and_batches_scale():
    one = step_seconds(DEVICE, "ptq", [LAYER])
    assert step_seconds(DEVICE, "ptq", [LAYER, LAYER]) == pytest.approx(2 * one)
    assert step_seconds(DEVICE, "ptq", []) == 0
    assert step_seconds(DEVICE, "ptq", [LAYER], 0.5) == step_seconds(DEVICE, "ptq", [LAYER.scaled(0.5)])
    assert one / 2 < step_seconds(DEVICE, "ptq", [LAYER], 0.5) < one


def test_a_round_is_download_steps_and_upload():
    time = round_seconds(DEVICE, "qat", [LAYER], num_steps=3, download_bytes=20, upload_bytes=5)
    assert time.download_seconds == pytest.approx(2.0)
    assert time.upload_seconds == pytest.approx(5.0)
    assert time.compute_seconds == pytest.approx(3 * step_seconds(DEVICE, "qat", [LAYER]))
    assert time.total == pytest.approx(7.0 + time.compute_seconds)


def test_the_gain_from_ptq_differs_by_device():
    # A layer with much arithmetic per byte, as in DESIGN section 6: (1/k + 2)/(3/k) for QAT over PTQ is the bound.
    layer = LayerCost("layer", "linear", 2 * 512 * 2048 * 2048, 4 * 2048 * 2048, 4 * 512 * 2048, 4 * 512 * 2048, True)
    ratios = {
        name: step_seconds(load_profile(name), "qat", [layer]) / step_seconds(load_profile(name), "ptq", [layer])
        for name in Fleet.resolve("mixed", 0).tiers
    }
    assert ratios["laptop-ryzen-7-7840u"] > 2
    assert ratios["phone-snapdragon-855"] > 2
    assert 1 < ratios["raspberry-pi-4"] < 1.2


def test_unknown_mode():
    with pytest.raises(ValueError, match="unknown mode 'int8'"):
        step_seconds(DEVICE, "int8", [LAYER])  # type: ignore[arg-type]  # the point of the test
