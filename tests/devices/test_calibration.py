"""The shipped factors, and fitting them."""

from dataclasses import asdict, replace

import pytest

from fedhq_lightning.devices import LayerCost, available_profiles, load_profile, step_seconds
from fedhq_lightning.devices.calibration import PLAIN, Calibration, shipped_calibration
from fedhq_lightning.devices.calibration_fit import Observation, fit
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.errors import ConfigurationError

LAPTOP = load_profile("laptop-ryzen-7-7840u")
SQUARE = 4096
MATRIX = 4.0 * SQUARE**2
HEAVY = LayerCost(
    *("a", "linear", 2.0 * SQUARE**3, MATRIX, MATRIX, MATRIX, True), rows=SQUARE, weight_shape=(SQUARE, SQUARE)
)
LIGHT = LayerCost("b", "other", 0.0, 0.0, 1e7, 1e7, False)
TINY = LayerCost("c", "linear", 1.0, 4.0, 4.0, 4.0, False)


def test_shipped_products_are_near_their_peaks():
    """Or the factors have taken over each other's part, and would mislead on other devices."""
    shipped = shipped_calibration()
    for name in ("linear_float", "convolution_float", "linear_int8", "convolution_int8", "linear_backward"):
        assert 0.8 <= getattr(shipped, name) < 4, name
    assert asdict(shipped).keys() == asdict(PLAIN).keys()


@pytest.mark.parametrize("name", available_profiles())
def test_shipped_factors_keep_the_order_of_modes(name):
    """PTQ costs no more than QAT, and conventional fake quantization most, on every device."""
    profile = load_profile(name)

    def seconds(mode, **kernels):
        return step_seconds(profile, mode, [HEAVY], kernels=LaneKernels(**kernels), calibration=shipped_calibration())

    ptq, qat, of_values = seconds("ptq"), seconds("qat"), seconds("qat", backward_of_values=frozenset({"a"}))
    conventional = seconds("qat", chosen={"qat": {"a": "fake"}})
    assert ptq < of_values < conventional or (profile.qat_kernel == "fake" and ptq < of_values == conventional)
    assert qat == (ptq if profile.qat_kernel == "int8" else of_values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_flaot": 1.0}, "unknown factor 'linear_flaot'.*did you mean 'linear_float'"),
        ({"linear_float": -1.0}, "linear_float is -1.0"),
        ({"linear_float": "1"}, "linear_float is '1'"),
        ({"linear_float": float("nan")}, "linear_float is nan"),
        ({"linear_float": None}, "linear_float is None"),
    ],
)
def test_broken_factors_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        Calibration.of(asdict(PLAIN) | changes)


def test_a_missing_factor_is_refused():
    with pytest.raises(ConfigurationError, match="linear_float, convolution_float missing"):
        Calibration.of({name: 1.0 for name in asdict(PLAIN) if not name.endswith("_float")})


def test_fit_finds_the_factors_that_made_the_times():
    truth = replace(PLAIN, linear_float=1.7, other_traffic=5.0, float_operators=9.0)
    parts = [
        Observation(LAPTOP, "fp", layers, LaneKernels(), 1.0, is_step=False) for layers in ([HEAVY], [LIGHT], [TINY])
    ]
    found = fit([replace(each, seconds=each.predicted(truth)) for each in parts], PLAIN, weight=1e-3)
    assert found.linear_float == pytest.approx(1.7, rel=0.02)
    assert found.other_traffic == pytest.approx(5.0, rel=0.05)
    assert found.float_operators == pytest.approx(9.0, rel=0.05)
    # What nothing was observed of stays.
    assert (found.linear_int8, found.update_traffic, found.step_operators) == (1.0, 1.0, 1.0)


def test_no_product_gets_much_faster_than_its_peak():
    half = Observation(LAPTOP, "fp", [HEAVY], LaneKernels(), 0.5, is_step=False)
    found = fit([replace(half, seconds=half.predicted(PLAIN) / 2)], PLAIN, weight=1e-3)
    assert found.linear_float == pytest.approx(0.8)


def test_a_hosts_slow_library_is_no_factor():
    part = Observation(LAPTOP, "fp", [HEAVY], LaneKernels(), 1.0, is_step=False, linear_slowdown=2.5)
    plain = replace(part, linear_slowdown=1.0)
    assert part.predicted(PLAIN) == pytest.approx(2.5 * plain.predicted(PLAIN), rel=1e-3)
    assert fit([replace(part, seconds=part.predicted(PLAIN))], PLAIN).linear_float == pytest.approx(1.0, rel=0.01)
