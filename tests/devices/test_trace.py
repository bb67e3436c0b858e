"""Fleets from traces: what they say, and every way in which they are refused."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedhq_lightning.devices import Availability, Fleet, TracedFleet, load_profile
from fedhq_lightning.devices.device_profile import shipped_file
from fedhq_lightning.errors import ConfigurationError

HEADER = "client,device,uplink_mbit_per_second,downlink_mbit_per_second,available_from_seconds,available_until_seconds"
CSV = f"""
# measured at home
{HEADER}
2, phone-snapdragon-855, , , 10, 30
0,phone-snapdragon-855,2.5,20,0,25

2,,,,40,60
1,raspberry-pi-4,,8,,
"""
PHONE, PI = load_profile("phone-snapdragon-855"), load_profile("raspberry-pi-4")


def fleet_of(text: str, name: str = "home.csv") -> TracedFleet:
    Path(name).write_text(text)
    fleet = Fleet.resolve(name, 0)
    assert isinstance(fleet, TracedFleet)
    return fleet


def rows(*lines: str) -> str:
    return "\n".join([HEADER, *lines]) + "\n"


def availability(*windows: tuple[int, float, float], period: float) -> Availability:
    positions, begins, ends = zip(*windows, strict=True)
    return Availability(np.array(positions), np.array(begins, float), np.array(ends, float), period)


def test_devices_links_and_tiers() -> None:
    fleet = fleet_of(CSV)
    first, second, third = (fleet.profile(position) for position in range(3))
    assert (first.name, first.uplink_bits_per_second, first.downlink_bits_per_second) == (PHONE.name, 2.5e6, 20e6)
    assert (second.name, second.uplink_bits_per_second) == (PI.name, PI.uplink_bits_per_second)
    assert second.downlink_bits_per_second == 8e6
    assert second.sources["downlink_bits_per_second"] == "the fleet's trace"
    assert "downlink_bits_per_second" not in second.unverified
    assert third == PHONE
    assert (first.fp32_flops_per_second, first.memory_bytes) == (PHONE.fp32_flops_per_second, PHONE.memory_bytes)
    assert [fleet.device(position) for position in range(3)] == [PHONE, PI, PHONE]
    assert dict(fleet.mix) == {PHONE: 2, PI: 1}
    assert set(fleet.tiers) == {PHONE.name, PI.name}
    assert fleet.name == "home"


def test_yaml_says_the_same() -> None:
    lines = [line.split(",") for line in CSV.split("\n")[3:] if line]
    columns = HEADER.split(",")
    clients = [
        {column: yaml.safe_load(cell) for column, cell in zip(columns, line, strict=True) if cell.strip()}
        for line in lines
    ]
    one, two = fleet_of(CSV), fleet_of(yaml.safe_dump({"clients": clients}), "home.yaml")
    assert [one.profile(position) for position in range(3)] == [two.profile(position) for position in range(3)]
    assert one.availability is not None
    assert two.availability is not None
    for name in ("positions", "begins", "ends", "period_seconds"):
        assert np.array_equal(getattr(one.availability, name), getattr(two.availability, name))


def test_windows_hold_their_begin_and_not_their_end_and_repeat() -> None:
    there = fleet_of(CSV).availability
    assert there is not None
    assert there.period_seconds == 60
    expected = {0: [0, 1], 9.5: [0, 1], 10: [0, 1, 2], 24.5: [0, 1, 2], 25: [1, 2], 30: [1], 59: [1, 2]}
    for seconds, present in expected.items():
        for period in range(3):
            assert there.present(seconds + 60 * period).tolist() == present
            assert there.wait_seconds(seconds + 60 * period) == 0


@pytest.mark.parametrize("period", ["100", "1e2"])
def test_a_period_of_its_own(period: str) -> None:
    text = f"{HEADER},period_seconds\n0,raspberry-pi-4,,,0,60,{period}\n0,,,,70,80,\n"
    clients = [
        {"client": 0, "device": "raspberry-pi-4", "available_from_seconds": 0, "available_until_seconds": 60},
        {"client": 0, "available_from_seconds": 70, "available_until_seconds": 80},
    ]
    for fleet in (fleet_of(text), fleet_of(yaml.safe_dump({"period_seconds": 100, "clients": clients}), "a.yml")):
        there = fleet.availability
        assert there is not None
        assert [there.wait_seconds(seconds) for seconds in (0, 59, 60, 79, 80, 99, 100, 165)] == [
            *(0, 0, 10, 0, 20, 1, 0, 5)
        ]


def test_nobody_there_waits_for_the_next() -> None:
    there = availability((0, 10, 20), (1, 15, 20), (2, 15, 16), period=50)
    assert (there.wait_seconds(3), there.present(3).tolist()) == (7, [0])
    assert (there.wait_seconds(20), there.present(20).tolist()) == (40, [0])
    later = there.without({0})
    assert (later.wait_seconds(3), later.present(3).tolist()) == (12, [1, 2])
    assert there.without(set()) is there


def test_somebody_is_there_after_every_wait_whatever_is_rounded() -> None:
    there = availability((0, 0.1, 0.2), (1, 0.7, 0.7000001), period=0.9)
    for step in range(2000):
        seconds = 1e6 * math.sqrt(step) / 7
        present = there.present(seconds).tolist()
        assert present in ([0], [1])
        assert 0 <= there.wait_seconds(seconds) < 0.9


def test_without_windows_everybody_always_is() -> None:
    fleet = fleet_of("client,device\n0,raspberry-pi-4\n1,phone-snapdragon-855\n")
    assert fleet.availability is None
    assert [fleet.profile(position) for position in range(2)] == [PI, PHONE]
    assert Fleet.resolve("mixed", 0).availability is None


def test_devices_may_be_files_beside_the_trace() -> None:
    Path("fleets").mkdir()
    pi = yaml.safe_load(shipped_file("raspberry-pi-4").read_text())
    Path("fleets/tiny.yaml").write_text(yaml.safe_dump(pi | {"name": "tiny"}))
    fleet = fleet_of("client,device\n0,tiny.yaml\n1,raspberry-pi-4\n", "fleets/home.csv")
    assert fleet.tiers == ("tiny", PI.name)
    pi["figures"]["memory_bytes"]["value"] = 3
    Path("fleets/other.yaml").write_text(yaml.safe_dump(pi))
    with pytest.raises(ConfigurationError, match="fleet 'home': two devices share a name"):
        fleet_of("client,device\n0,other.yaml\n1,raspberry-pi-4\n", "fleets/home.csv")


def test_what_spreadsheets_write() -> None:
    text = "\ufeff" + CSV.replace("\n", "\r\n") + ",,,,,\r\n"
    Path("home.csv").write_bytes(text.encode())
    fleet = Fleet.resolve(Path("home.csv"), 0)
    assert Counter(fleet.profile(position).name for position in range(3)) == {PHONE.name: 2, PI.name: 1}


def test_a_large_trace() -> None:
    lines = [f"{client},raspberry-pi-4,{1 + client % 7},,{client % 50},{50 + client % 50}" for client in range(20_000)]
    there = fleet_of(rows(*lines)).availability
    assert there is not None
    present = there.present(20)
    assert present.tolist() == [client for client in range(20_000) if client % 50 <= 20]


def test_the_size_of_a_trace_must_be_the_datas() -> None:
    fleet = fleet_of(CSV)
    fleet.check_size(3)
    for count in (2, 4):
        with pytest.raises(ConfigurationError, match=f"'home': its trace names 3 clients, the data has {count};"):
            fleet.check_size(count)
    for position in (-1, 3):
        for ask in (fleet.profile, fleet.device):
            with pytest.raises(ValueError, match="the trace names 0 to 2"):
                ask(position)
    mixed = Fleet.resolve("mixed", 0)
    mixed.check_size(7)
    assert mixed.device(5) == mixed.profile(5)


PI_ROW = "0,raspberry-pi-4,,,,"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "fleet 'home': no client; give a row for each"),
        (HEADER, "fleet 'home': no client"),
        ("client,devise\n0,raspberry-pi-4\n", r"line 1: unknown column 'devise'; .*did you mean 'device'\?"),
        ("client,uplink_mbit_per_second\n0,1\n", "line 1: column 'device' is missing; the first line names"),
        ("device\nraspberry-pi-4\n", "column 'client' is missing"),
        ("client,device,device\n0,a,b\n", "column 'device' is there twice"),
        (rows("0,raspberry-pi-4"), "fleet 'home', line 2: 2 cells for 6 columns"),
        (rows('0,"raspberry-pi-4,,,,'), r"line 2: is no CSV: unexpected end of data"),
        (rows("0,raspberry-pi-5,,,,"), r"fleet 'home', line 2: unknown device.*did you mean 'raspberry-pi-4'\?"),
        (rows("0,gone.yaml,,,,"), r"line 2: cannot read gone\.yaml"),
        (rows("0,,,,,"), "line 2: client 0 has no device"),
        (rows("0,,,,0,1", "0,raspberry-pi-4,,,2,3"), "line 2: client 0 has no device; its first row must name one"),
        (rows(",raspberry-pi-4,,,,"), "line 2: client is missing; it must be a whole number"),
        (rows("-1,raspberry-pi-4,,,,"), "client is '-1'; it must be a whole number"),
        (rows("hospital-7,raspberry-pi-4,,,,"), "client is 'hospital-7'; .* place in client_ids, from 0"),
        (rows(PI_ROW, "2,raspberry-pi-4,,,,"), "fleet 'home': client 1 is missing, client 2 is there"),
        (rows("1,raspberry-pi-4,,,,"), "client 0 is missing, client 1 is there"),
        (rows(PI_ROW, "999999999999,raspberry-pi-4,,,,"), "client 1 is missing, client 999999999999 is there"),
        (rows("0,raspberry-pi-4,0,,,"), "line 2: uplink_mbit_per_second is '0'; it must be a positive number"),
        (rows("0,raspberry-pi-4,,-3,,"), "downlink_mbit_per_second is '-3'; it must be a positive"),
        (rows("0,raspberry-pi-4,nan,,,"), "uplink_mbit_per_second is 'nan'"),
        (rows("0,raspberry-pi-4,inf,,,"), "uplink_mbit_per_second is 'inf'"),
        (rows("0,raspberry-pi-4,fast,,,"), "uplink_mbit_per_second is 'fast'"),
        (rows("0,raspberry-pi-4,,,-1,5"), "available_from_seconds is '-1'; it must be a number, 0 or more"),
        (rows("0,raspberry-pi-4,,,0,soon"), "available_until_seconds is 'soon'"),
        (rows("0,raspberry-pi-4,,,5,"), "available_until_seconds is missing; give both ends"),
        (rows("0,raspberry-pi-4,,,,5"), "available_from_seconds is missing; give both ends"),
        (rows("0,raspberry-pi-4,,,9,5"), "line 2: the window ends at 5 and begins at 9 seconds; it must end later"),
        (rows("0,raspberry-pi-4,,,5,5"), "it must end later"),
        (
            rows("0,raspberry-pi-4,,,20,30", "0,,,,0,21"),
            r"line 2: the window 20 to 30 of client 0 overlaps its 0 to 21 \(line 3\)",
        ),
        (rows("0,raspberry-pi-4,,,0,5", "0,,,,,"), "line 3: client 0 has no window here, but further rows"),
        (rows(PI_ROW, "0,,,,0,5"), "line 2: client 0 has no window here, but further rows"),
        (rows(PI_ROW, PI_ROW), "line 2: client 0 has no window here, but further rows"),
        (
            rows("0,raspberry-pi-4,,,0,5", "0,phone-snapdragon-855,,,6,7"),
            "line 3: device of client 0 is 'phone-snapdragon-855', but 'raspberry-pi-4' in its first row",
        ),
        (
            rows("0,raspberry-pi-4,,,0,5", "0,,2,,6,7"),
            "line 3: uplink_mbit_per_second of client 0 is 2.0, but None in its first row",
        ),
        (
            f"{HEADER},period_seconds\n0,raspberry-pi-4,,,0,5,4\n",
            "line 2: available_until_seconds is 5, after the period_seconds of 4",
        ),
        (f"{HEADER},period_seconds\n0,raspberry-pi-4,,,0,5,0\n", "period_seconds is '0'; it must be a positive"),
        (
            f"{HEADER},period_seconds\n0,raspberry-pi-4,,,0,5,9\n0,,,,6,7,8\n",
            "line 3: period_seconds is 8, but 9 before",
        ),
    ],
)
def test_refuses_csv(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fleet_of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clients: 3", "fleet 'home': clients is 3; it must be a list of rows"),
        ("clients: []", "fleet 'home': no client"),
        ("clients: [3]", "fleet 'home', row 1: 3 is no mapping"),
        ("clients: []\nperiod: 3", r"unknown column 'period'; allowed are clients, period_seconds; did you mean"),
        ("clients: [{client: 0, devices: a}]", r"row 1: unknown column 'devices'; .*did you mean 'device'\?"),
        ("clients: [{client: 0, device: 855}]", "row 1: device is 855; it must be a device's name"),
        ("clients: [{client: true, device: raspberry-pi-4}]", "row 1: client is True"),
        ("clients: [{client: 0.5, device: raspberry-pi-4}]", "row 1: client is 0.5"),
        (
            "clients: [{client: 0, device: raspberry-pi-4, uplink_mbit_per_second: true}]",
            "uplink_mbit_per_second is True",
        ),
        ("clients: [{client: 0, device: raspberry-pi-4}]\nperiod_seconds: -1", "'home': period_seconds is -1"),
        ("clients: [", r"cannot read home\.yaml"),
        ("trace: []", "expected only `profiles: .* or a trace's `clients`, found 'trace'"),
    ],
)
def test_refuses_yaml(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fleet_of(text, "home.yaml")


def test_refuses_what_cannot_be_read() -> None:
    with pytest.raises(ConfigurationError, match=r"fleet: cannot read gone\.csv"):
        Fleet.resolve("gone.csv", 0)
    Path("binary.csv").write_bytes(b"\xff\xfe\x00client")
    with pytest.raises(ConfigurationError, match=r"fleet: cannot read binary\.csv"):
        Fleet.resolve("binary.csv", 0)
    Path("folder.csv").mkdir()
    with pytest.raises(ConfigurationError, match=r"fleet: cannot read folder\.csv"):
        Fleet.resolve("folder.csv", 0)
