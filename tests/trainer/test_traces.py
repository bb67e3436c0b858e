"""Whole runs on a fleet from a trace: who is there takes part, and the clock waits where nobody is."""

from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.records import ClientRecord, RoundRecord
from fedhq_lightning.trainer import FederatedTrainer

from ..small_federation import SmallData, SmallModule, same_bits, trainer
from .runs import Recorder, checkpoint, fit, records

HEADER = "client,device,uplink_mbit_per_second,downlink_mbit_per_second,available_from_seconds,available_until_seconds"
# Links so slow that the times of all are alike.
DEVICES = {
    0: "phone-snapdragon-855,0.5,0.5",
    1: "phone-snapdragon-855,0.6,0.6",
    2: "raspberry-pi-4,0.5,",
    3: "raspberry-pi-4,0.7,0.7",
}
# In units of the slowest round, whatever a device's figures are; no window ends just where a round may.
OPEN = {0: (10, 13.37), 1: (10, 12.37), 2: (11.37, 14.37), 3: (30, 31.61)}
PERIOD = 40


class Windows:
    """A trace in the working directory, with windows to which rounds are short."""

    file = "windows.csv"

    def __init__(self) -> None:
        lines = [",".join(HEADER.split(",")[:4]), *(f"{client},{device}" for client, device in DEVICES.items())]
        Path("always.csv").write_text("\n".join(lines))
        self.unit = records(fit(fleet="always.csv", max_rounds=1)[0])[1].virtual_seconds
        lines = [f"{HEADER},period_seconds"]
        for client, device in DEVICES.items():
            begin, end = (self.unit * edge for edge in OPEN[client])
            lines.append(f"{client},{device},{begin!r},{end!r},{self.unit * PERIOD!r}")
        Path(self.file).write_text("\n".join(lines))

    def present(self, seconds: float) -> list[int]:
        phase = seconds / self.unit % PERIOD
        return [client for client, (begin, end) in OPEN.items() if begin - 1e-6 <= phase < end]


@pytest.fixture
def windows() -> Windows:
    return Windows()


def facts(record: RoundRecord) -> Any:
    """All but what is measured on this host."""

    def of_client(client: ClientRecord) -> Any:
        return {key: value for key, value in client.to_json().items() if key != "fit_wall_seconds"}

    kept = {key: value for key, value in record.to_json().items() if "wall" not in key and key != "allocator_seconds"}
    return kept | {"clients": [of_client(client) for client in record.clients]}


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:round .* clients are available:UserWarning")
class TestAvailability:
    def test_only_who_is_there_takes_part_and_rounds_wait(self, windows: Windows) -> None:
        there, _ = fit(fleet=windows.file, max_rounds=20, clients_per_round=2, eval_every_n_rounds=20)
        done = records(there)
        assert [done[0].wait_seconds, done[0].virtual_seconds] == [0, 0]
        assert done[1].wait_seconds == 10 * windows.unit, "nobody is there at the start"
        now = 0.0
        for record in done[1:]:
            slowest = max(client.virtual_seconds for client in record.clients)
            begin = now + record.wait_seconds
            expected = windows.present(begin)
            ids = [client.client_id for client in record.clients]
            assert set(ids) <= set(expected)
            assert len(ids) == min(2, len(expected)) > 0
            assert (record.wait_seconds > 0) == (not windows.present(now))
            assert record.virtual_seconds == pytest.approx(record.wait_seconds + slowest, rel=1e-12)
            assert record.total_virtual_seconds == pytest.approx(now + record.virtual_seconds, rel=1e-12)
            now = record.total_virtual_seconds
        assert {client.client_id for record in done for client in record.clients} == {0, 1, 2, 3}
        assert sum(record.wait_seconds > 0 for record in done) >= 4
        assert there.summary["virtual_seconds"] == now
        assert {tier["tier"] for tier in there.summary["tiers"]} == {"phone-snapdragon-855", "raspberry-pi-4"}

    def test_a_clients_own_link_makes_its_time(self, windows: Windows) -> None:
        clients = {
            client.client_id: client
            for record in records(fit(fleet=windows.file, max_rounds=4)[0])
            for client in record.clients
        }
        assert clients[0].upload_seconds == pytest.approx(8 * clients[0].uplink_bytes / 0.5e6)
        assert clients[0].download_seconds == pytest.approx(8 * clients[0].downlink_bytes / 0.5e6)
        assert clients[1].upload_seconds < clients[0].upload_seconds
        assert clients[0].tier == clients[1].tier

    def test_the_deadline_begins_after_the_wait(self, windows: Windows) -> None:
        slowest = max(client.virtual_seconds for client in records(fit(fleet=windows.file, max_rounds=1)[0])[1].clients)
        deadline = 0.9 * slowest
        there, _ = fit(fleet=windows.file, max_rounds=1, round_deadline=deadline)
        first = records(there)[1]
        assert first.late == 1
        assert first.virtual_seconds == pytest.approx(10 * windows.unit + deadline)

    @pytest.mark.parametrize("after", [1, 11])
    def test_goes_on_as_if_nothing_had_happened(self, windows: Windows, after: int) -> None:
        def interrupt(there: FederatedTrainer, record: RoundRecord) -> None:
            if record.round == after:
                raise KeyboardInterrupt

        def settings(callback: Recorder) -> dict[str, Any]:
            mine: dict[str, Any] = {"fleet": windows.file, "max_rounds": 16, "clients_per_round": 2, "scheme": "w4a8"}
            return mine | {"callbacks": [callback, FixedAllocator(0.5)]}

        unbroken, state = fit(**settings(Recorder()))
        broken = trainer(**settings(Recorder(interrupt)))
        with pytest.raises(KeyboardInterrupt):
            broken.fit(SmallModule(), SmallData())
        resumed, same = fit(ckpt_path=broken.run_dir, **settings(Recorder()))
        assert same_bits(state, same)
        assert same_bits(checkpoint(unbroken)["state"]["best_state"], checkpoint(resumed)["state"]["best_state"])
        assert [facts(record) for record in records(resumed)] == [facts(record) for record in records(unbroken)]
        assert sum(record.wait_seconds > 0 for record in records(resumed)) >= 2


@pytest.mark.usefixtures("quick")
class TestTraces:
    def test_the_devices_change_time_only(self) -> None:
        """Without windows a trace is a fleet like any other, and everybody's draws are the same."""
        lines = [f"{client},{'raspberry-pi-4' if client % 2 else 'phone-snapdragon-855'}" for client in range(4)]
        Path("plain.csv").write_text("\n".join(["client,device", *lines]))
        Path("plain.yaml").write_text(
            "clients:\n" + "".join(f"- {{client: {i}, device: raspberry-pi-4}}\n" for i in range(4))
        )
        settings: dict[str, Any] = {"clients_per_round": 2, "max_rounds": 3}
        runs = [fit(fleet=fleet, **settings) for fleet in ("uniform", "plain.csv", "plain.yaml")]
        for there, state in runs[1:]:
            assert same_bits(state, runs[0][1])
            assert all(record.wait_seconds == 0 for record in records(there))

    def test_too_few_clients_are_said_once(self, windows: Windows) -> None:
        with pytest.warns(UserWarning, match="are available for a cohort of 4") as caught:
            fit(fleet=windows.file, max_rounds=3)
        assert sum("are available" in str(warning.message) for warning in caught) == 1

    def test_refused_before_anything_is_left(self, windows: Windows) -> None:
        before = list(Path("runs").glob("*/*"))
        with pytest.raises(ConfigurationError, match="'windows': its trace names 4 clients, the data has 3"):
            fit(fleet=windows.file, data=SmallData((8, 8, 8)))
        with pytest.raises(ConfigurationError, match="cannot read gone"):
            fit(fleet="gone.csv")
        assert list(Path("runs").glob("*/*")) == before
