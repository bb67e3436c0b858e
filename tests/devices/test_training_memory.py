"""Bytes of a mode, by hand, and in the order that is measured."""

from dataclasses import replace

from fedhq_lightning.devices import LayerCost, load_profile
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.devices.training_memory import fits, training_bytes

LAPTOP, PI, NANO = (load_profile(name) for name in ("laptop-ryzen-7-7840u", "raspberry-pi-4", "jetson-nano"))
LAYER = LayerCost("a", "linear", 1e9, 4000.0, 100.0, 200.0, True, rows=512.0, weight_shape=(512, 512))
PLAIN = 4 * 4000 + 100 + 300


def test_by_hand():
    assert training_bytes(LAPTOP, "fp", [LAYER]) == PLAIN
    assert training_bytes(LAPTOP, "fp", [LAYER], optimizer_states=0) == PLAIN - 8000
    assert training_bytes(LAPTOP, "fp", [LAYER], 0.5) == 16000 + 50 + 150
    assert training_bytes(LAPTOP, "ptq", [LAYER]) == PLAIN + 1025
    assert training_bytes(PI, "ptq", [LAYER]) == PLAIN
    assert training_bytes(LAPTOP, "qat", [LAYER]) == PLAIN + 1025
    assert training_bytes(PI, "qat", [LAYER]) == PLAIN + 4000 + 100
    assert training_bytes(NANO, "qat", [LAYER]) == PLAIN + 4000 + 400


def test_what_is_frozen_has_neither_gradient_nor_optimizer_state() -> None:
    frozen = replace(LAYER, trained=False)
    for mode in ("fp", "ptq", "qat"):
        assert training_bytes(LAPTOP, mode, [LAYER]) - training_bytes(LAPTOP, mode, [frozen]) == 3 * 4000


def test_convolutions_keep_their_input_as_it_is():
    layer = replace(LAYER, kind="convolution", weight_shape=(64, 64, 3, 3), rows=1e5)
    assert training_bytes(LAPTOP, "ptq", [layer]) == PLAIN
    assert training_bytes(LAPTOP, "qat", [layer]) == PLAIN + 1000


def test_weight_only_grids_round_no_input():
    layer = replace(LAYER, quantizes_activations=False)
    assert training_bytes(PI, "qat", [layer]) == PLAIN + 4000


def test_conventional_fake_quantization_takes_most():
    fake = LaneKernels({"qat": {"a": "fake"}})
    assert training_bytes(LAPTOP, "qat", [LAYER], kernels=fake) > training_bytes(PI, "qat", [LAYER])


def test_a_device_gives_half_of_its_memory():
    device = replace(PI, memory_bytes=2.0 * PLAIN)
    assert fits(device, PLAIN)
    assert not fits(device, PLAIN + 1)
