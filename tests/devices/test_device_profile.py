import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from fedhq_lightning.devices import DeviceProfile, available_profiles, load_profile
from fedhq_lightning.devices.device_profile import shipped_file
from fedhq_lightning.errors import ConfigurationError

FIGURES = [
    "fp32_flops_per_second",
    "bf16_flops_per_second",
    "int8_training_gain",
    "memory_bytes_per_second",
    "memory_bytes",
    "operator_seconds",
    "uplink_bits_per_second",
    "downlink_bits_per_second",
]
OPTIONAL = ["bf16_flops_per_second", "int8_training_gain"]


@pytest.fixture
def content():
    return yaml.safe_load(shipped_file("laptop-ryzen-7-7840u").read_text())


def load(content, folder: Path) -> DeviceProfile:
    file = folder / "device.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_profile(file)


@pytest.mark.parametrize("name", available_profiles())
def test_shipped_profiles_name_a_source_for_every_figure(name):
    profile = load_profile(name)
    assert profile.name == name
    assert set(profile.sources) == set(FIGURES)
    assert all(len(source) > 20 and source != "none given" for source in profile.sources.values())
    assert set(profile.unverified) < set(FIGURES)


def test_units_are_converted_to_base_units():
    laptop, phone, pi = map(load_profile, ("laptop-ryzen-7-7840u", "phone-snapdragon-855", "raspberry-pi-4"))
    assert laptop.fp32_flops_per_second == pytest.approx(8 * 3.3e9 * 32)
    assert laptop.bf16_flops_per_second == pytest.approx(2 * 8 * 3.3e9 * 32)
    assert laptop.memory_bytes == 16 * 2**30
    assert laptop.uplink_bits_per_second == pytest.approx(23.71e6)
    assert phone.fp32_flops_per_second == pytest.approx((2.84e9 + 3 * 2.42e9) * 16)
    assert phone.memory_bytes == 6e9
    assert pi.fp32_flops_per_second == pytest.approx(4 * 1.5e9 * 8)
    assert pi.memory_bytes_per_second == pytest.approx(5.56e9)


def test_the_three_devices_differ_in_kernels():
    laptop, phone, pi = map(load_profile, ("laptop-ryzen-7-7840u", "phone-snapdragon-855", "raspberry-pi-4"))
    assert laptop.bf16_flops_per_second is not None
    assert laptop.int8_flops_per_second == pytest.approx(4 * laptop.fp32_flops_per_second)
    assert phone.bf16_flops_per_second is None
    assert phone.int8_flops_per_second is not None
    assert pi.bf16_flops_per_second is None
    assert pi.int8_training_gain is None
    assert pi.int8_flops_per_second is None


def test_kernels_go_with_the_gain(content, tmp_path):
    content["kernels"] = {"ptq": "fp", "qat": "int8"}
    assert load(content, tmp_path).qat_kernel == "int8"
    content["kernels"] = {"ptq": "fp", "qat": "fused"}
    with pytest.raises(ConfigurationError, match="int8_training_gain is 4, but no kernel is int8"):
        load(content, tmp_path)
    content["figures"]["int8_training_gain"]["value"] = None
    assert load(content, tmp_path).ptq_kernel == "fp"
    content["kernels"] = {"ptq": "int8", "qat": "int8"}
    with pytest.raises(ConfigurationError, match="int8 is a kernel of ptq and qat, but int8_training_gain is null"):
        load(content, tmp_path)


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        (None, r"needs `kernels: \{ptq: ..., qat: ...\}`"),
        ({"ptq": "int8"}, "ptq is one of int8, fp; qat is one of int8, fused, fake"),
        ({"ptq": "int8", "qat": "fak"}, "kernels qat is 'fak'.*did you mean 'fake'"),
        ({"ptq": "fake", "qat": "int8"}, "kernels ptq is 'fake'"),
    ],
)
def test_kernels_that_do_not_exist_are_refused(content, tmp_path, kernels, message):
    content["kernels"] = kernels
    with pytest.raises(ConfigurationError, match=message):
        load(content, tmp_path)


def test_the_calibration_is_not_a_device():
    with pytest.raises(ConfigurationError, match="unknown device 'calibration'"):
        load_profile("calibration")


def test_a_file_of_ones_own_is_loaded_from_a_path_given_as_text_too(content, tmp_path):
    content["name"] = "mine"
    content["figures"]["memory_bytes"] = {"value": 512, "unit": "MiB", "source": "a guess"}
    assert load(content, tmp_path).memory_bytes == 2**29
    profile = load_profile(str(tmp_path / "device.yaml"))
    assert profile.name == "mine"
    assert "memory_bytes" in profile.unverified


def test_a_figure_without_a_source_is_refused(content, tmp_path):
    del content["figures"]["memory_bytes"]["source"]
    with pytest.raises(ConfigurationError, match="memory_bytes has no source; say where it is from"):
        load(content, tmp_path)


def test_a_file_without_a_name_is_called_by_its_file(content, tmp_path):
    del content["name"]
    assert load(content, tmp_path).name == "device"


def test_unknown_device_gets_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r"unknown device 'raspbery-pi-4'.*did you mean 'raspberry-pi-4'\?"):
        load_profile("raspbery-pi-4")


def test_a_fleet_is_not_a_device():
    with pytest.raises(ConfigurationError, match="unknown device 'fleet-mixed'"):
        load_profile("fleet-mixed")


@pytest.mark.parametrize("figure", FIGURES)
def test_a_missing_figure_is_refused_by_name(content, tmp_path, figure):
    del content["figures"][figure]
    with pytest.raises(ConfigurationError, match=f"figure {figure} is missing"):
        load(content, tmp_path)


@pytest.mark.parametrize("value", [0, -1.5, float("nan"), float("inf"), True, "48e9"])
@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_that_is_no_positive_number_is_refused_by_name(content, tmp_path, figure, value):
    changed = copy.deepcopy(content)
    changed["figures"][figure]["value"] = value
    with pytest.raises(ConfigurationError, match=f"{figure} is .*must be a positive number"):
        load(changed, tmp_path)


@pytest.mark.parametrize("figure", FIGURES)
def test_only_bf16_and_int8_kernels_may_be_absent(content, tmp_path, figure):
    content["figures"][figure]["value"] = None
    if figure == "int8_training_gain":
        content["kernels"] = {"ptq": "fp", "qat": "fused"}
    if figure in OPTIONAL:
        assert getattr(load(content, tmp_path), figure) is None
    else:
        with pytest.raises(ConfigurationError, match=figure):
            load(content, tmp_path)


def test_another_unit_is_refused_with_those_allowed(content, tmp_path):
    content["figures"]["uplink_bits_per_second"]["unit"] = "MBit/s"
    with pytest.raises(ConfigurationError, match=r"'MBit/s'; allowed are .*Mbit/s.*did you mean 'Mbit/s'"):
        load(content, tmp_path)


def test_unknown_keys_get_the_nearest(content, tmp_path):
    content["figures"]["memory_byte"] = content["figures"]["memory_bytes"]
    with pytest.raises(ConfigurationError, match="did you mean 'memory_bytes'"):
        load(content, tmp_path)


def test_a_bare_number_is_refused(content, tmp_path):
    content["figures"]["memory_bytes"] = 4e9
    with pytest.raises(ConfigurationError, match="memory_bytes needs `value`, `unit`"):
        load(content, tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "name: x"])
def test_what_is_no_profile_is_refused(tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"broken\.yaml"):
        load_profile(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot read .*absent\.yaml"):
        load_profile(tmp_path / "absent.yaml")


def test_profiles_made_in_python_are_checked_too():
    with pytest.raises(ConfigurationError, match="device 'raspberry-pi-4': memory_bytes is -1"):
        dataclasses.replace(load_profile("raspberry-pi-4"), memory_bytes=-1)
