import dataclasses
from collections import Counter

import pytest

from fedhq_lightning.devices import Fleet, available_fleets, load_profile
from fedhq_lightning.devices.device_profile import shipped_file
from fedhq_lightning.errors import ConfigurationError


def dealt(fleet: Fleet, num_clients: int) -> Counter:
    return Counter(fleet.profile(position).name for position in range(num_clients))


def test_shipped_fleets():
    assert available_fleets() == ["mixed", "uniform"]
    assert Fleet.resolve("uniform", 0).tiers == ("phone-snapdragon-855",)
    assert Fleet.resolve("mixed", 0).tiers == ("laptop-ryzen-7-7840u", "phone-snapdragon-855", "raspberry-pi-4")


def test_the_tiers_of_mixed_are_far_apart():
    fleet = Fleet.resolve("mixed", 0)
    peaks = [profile.fp32_flops_per_second for profile, _ in fleet.mix]
    assert peaks[0] > 4 * peaks[1] > 12 * peaks[2]


@pytest.mark.parametrize("seed", [0, 1, 17])
@pytest.mark.parametrize("num_clients", [10, 20, 100])
def test_full_blocks_hold_exact_proportions(seed, num_clients):
    tenths = num_clients // 10
    assert dealt(Fleet.resolve("mixed", seed), num_clients) == {
        "laptop-ryzen-7-7840u": 3 * tenths,
        "phone-snapdragon-855": 5 * tenths,
        "raspberry-pi-4": 2 * tenths,
    }


def test_the_seed_deals():
    def deal(seed):
        fleet = Fleet.resolve("mixed", seed)
        return [fleet.profile(position).name for position in range(100)]

    assert deal(1) == deal(1)
    assert deal(1) != deal(2)
    assert deal(1)[:10] != deal(1)[10:20]


def test_dealing_never_changes():
    # Recorded: a run that resumes after an update of the package must find the same devices.
    fleet = Fleet.resolve("mixed", 0)
    assert "".join(fleet.profile(position).name[0] for position in range(20)) == "prpplllpprlrppplprpl"


def test_a_millionth_client_costs_nothing_extra():
    fleet = Fleet.resolve("mixed", 3)
    last = Counter(fleet.profile(position).name for position in range(999_990, 1_000_000))
    assert last["phone-snapdragon-855"] == 5
    assert set(vars(fleet)) == {"name", "mix", "seed"}


def test_a_list_is_a_mix_in_which_each_entry_counts():
    pi = load_profile("raspberry-pi-4")
    slow = dataclasses.replace(pi, name="slow", fp32_flops_per_second=1e9)
    fleet = Fleet.resolve(["raspberry-pi-4", "phone-snapdragon-855", pi, slow], seed=5)
    assert dealt(fleet, 4) == {"raspberry-pi-4": 2, "phone-snapdragon-855": 1, "slow": 1}
    assert fleet.tiers == ("raspberry-pi-4", "phone-snapdragon-855", "slow")


def test_a_mapping_is_a_weighted_mix_in_lowest_terms():
    fleet = Fleet.resolve({"raspberry-pi-4": 200, "phone-snapdragon-855": 100}, seed=5)
    assert fleet.block_size == 3
    assert dealt(fleet, 3) == {"raspberry-pi-4": 2, "phone-snapdragon-855": 1}


def test_a_fleet_is_taken_as_it_is():
    fleet = Fleet.resolve("mixed", 3)
    assert Fleet.resolve(fleet, 4) is fleet


def test_a_file_names_devices_and_files_beside_it(tmp_path):
    pi = shipped_file("raspberry-pi-4").read_text()
    (tmp_path / "tiny.yaml").write_text(pi.replace("name: raspberry-pi-4", "name: tiny"))
    (tmp_path / "home.yaml").write_text("profiles:\n  tiny.yaml: 1\n  raspberry-pi-4: 1\n")
    for spec in (tmp_path / "home.yaml", str(tmp_path / "home.yaml")):
        fleet = Fleet.resolve(spec, 0)
        assert fleet.name == "home"
        assert dealt(fleet, 2) == {"tiny": 1, "raspberry-pi-4": 1}


def test_unknown_fleet_gets_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r"unknown fleet 'mixd'; shipped are mixed, uniform.*mean 'mixed'\?"):
        Fleet.resolve("mixd", 0)


def test_unknown_device_in_a_list_gets_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r"did you mean 'phone-snapdragon-855'\?"):
        Fleet.resolve(["phone-snapdragon-885"], 0)


@pytest.mark.parametrize("weight", [0, -1, 1.5, "2", True, None])
def test_weights_are_whole_and_positive(weight):
    with pytest.raises(ConfigurationError, match=r"weight of 'raspberry-pi-4' is .*whole number"):
        Fleet.resolve({"raspberry-pi-4": weight}, 0)


@pytest.mark.parametrize("spec", [[], {}])
def test_an_empty_fleet_is_refused(spec):
    with pytest.raises(ConfigurationError, match="no device"):
        Fleet.resolve(spec, 0)


def test_two_devices_of_one_name_are_refused():
    pi = load_profile("raspberry-pi-4")
    with pytest.raises(ConfigurationError, match="share a name"):
        Fleet.resolve([pi, dataclasses.replace(pi, memory_bytes=1.0)], 0)


def test_weights_too_fine_are_refused():
    with pytest.raises(ConfigurationError, match="at most 10000"):
        Fleet.resolve({"raspberry-pi-4": 1, "phone-snapdragon-855": 20_000}, 0)


def test_a_file_with_other_keys_is_refused(tmp_path):
    file = tmp_path / "fleet.yaml"
    file.write_text("devices: {raspberry-pi-4: 1}\n")
    with pytest.raises(ConfigurationError, match=r"expected only `profiles:.*found 'devices'"):
        Fleet.resolve(file, 0)


def test_what_is_no_spec_is_refused():
    with pytest.raises(ConfigurationError, match="neither a name"):
        Fleet.resolve(3, 0)


def test_a_negative_position_is_refused():
    with pytest.raises(ValueError, match="negative"):
        Fleet.resolve("mixed", 0).profile(-1)


def test_the_digest_tells_what_the_files_say(tmp_path):
    fleet = tmp_path / "mine.yaml"
    fleet.write_text("profiles: {phone-snapdragon-855: 2, raspberry-pi-4: 1}\n")
    trace = tmp_path / "trace.csv"
    lines = "client,device,uplink_mbit_per_second\n0,raspberry-pi-4,{}\n1,phone-snapdragon-855,2\n"
    trace.write_text(lines.format(1))
    before = [Fleet.resolve(path, seed=0).digest for path in (fleet, trace)]
    assert before == [Fleet.resolve(path, seed=1).digest for path in (str(fleet), str(trace))]
    fleet.write_text("profiles: {phone-snapdragon-855: 1, raspberry-pi-4: 1}\n")
    trace.write_text(lines.format(3))
    after = [Fleet.resolve(path, seed=0).digest for path in (fleet, trace)]
    assert len({*before, *after}) == 4
