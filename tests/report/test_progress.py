"""The live display and its plain form."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fedhq_lightning.allocation.briefing import Briefing, TierBrief
from fedhq_lightning.federated.callback import Monitored
from fedhq_lightning.federated.privacy import CentralPrivacy
from fedhq_lightning.report.briefing import briefing_text
from fedhq_lightning.report.formats import format_seconds
from fedhq_lightning.report.progress import ProgressDisplay
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.support.phase_clock import PhaseClock
from fedhq_lightning.types import Plan

from ..small_run import small_rounds
from .test_final_table import Terminal


def clock() -> PhaseClock:
    """One that tells what came before the rounds."""
    found = PhaseClock("rounds")
    found._seconds |= {"start": 3.14, "set_up": 2.0}
    return found


def drive(
    display: ProgressDisplay,
    rounds: list[RoundRecord],
    end: bool = True,
    monitor: str = "val_accuracy",
    allocator: Any = None,
    **attributes: Any,
) -> None:
    """Call the hooks as the trainer does."""
    settings = SimpleNamespace(max_rounds=12, allocator=allocator, privacy=None)
    trainer: Any = SimpleNamespace(
        settings=settings, is_global_zero=True, monitored=Monitored(monitor), should_stop=False, clock=clock()
    )
    trainer.__dict__.update(attributes)
    display.on_fit_start(trainer)
    for record in rounds:
        if record.round > 0:
            plan = Plan({client.client_id: client.mode for client in record.clients})
            display.on_round_start(trainer, record.round, plan)
            for client in record.clients:
                display.on_client_start(trainer, client.client_id, client.mode)
                display.on_client_end(trainer, client)
        display.on_round_end(trainer, record)
    if end:
        display.on_fit_end(trainer)


def last_frame(file: io.StringIO) -> list[str]:
    """The lines that stay on the screen, without escapes."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).replace("\r", "")
    return [line for line in text.splitlines() if line.strip()][-4:]


def test_without_a_terminal_one_plain_line_a_round() -> None:
    file = io.StringIO()
    rounds = small_rounds()
    drive(ProgressDisplay(Console(file=file, width=20)), rounds)
    before, *lines = file.getvalue().splitlines()
    assert before == "start 3.1 s, set-up 2.0 s wall"
    assert len(lines) == len(rounds)
    assert "\x1b" not in file.getvalue()
    assert lines[0].startswith("round 0/12 | val_accuracy quantized 0.0715 fp 0.1000 | wall 534 ms | virtual 0 s")
    assert lines[1].startswith("round 1/12 | val_accuracy not evaluated | PTQ 3, QAT 3 | 1 late | wall ")
    assert lines[-1].startswith("round 12/12 | val_accuracy quantized 0.9268 fp 0.9541")
    assert lines[-1].endswith("| wall 12.7 s | virtual 14 min 15 s | ETA 0 s wall")


def test_a_private_run_says_what_it_promises_and_has_spent() -> None:
    file = io.StringIO()
    rounds = [replace(record, epsilon=0.25 * record.round) for record in small_rounds()[:3]]
    privacy = CentralPrivacy(1.0, 0.5, 1e-5)
    settings = SimpleNamespace(max_rounds=12, allocator=None, privacy=privacy)
    drive(ProgressDisplay(Console(file=file)), rounds, settings=settings)
    _, promise, *lines = file.getvalue().splitlines()
    assert promise == privacy.briefing
    assert [" | epsilon 0.5 | " in line for line in lines] == [False, False, True]


def test_eta_is_the_mean_of_the_last_rounds_times_the_rounds_to_go() -> None:
    file = io.StringIO()
    rounds = small_rounds()[:4]
    drive(ProgressDisplay(Console(file=file)), rounds)
    mean = sum(record.wall_seconds for record in rounds[1:]) / 3
    assert file.getvalue().splitlines()[-1].endswith(f"ETA {9 * mean:.1f} s wall")


def test_only_the_first_process_shows_anything() -> None:
    file = Terminal()
    drive(ProgressDisplay(Console(file=file, force_terminal=True)), small_rounds(), is_global_zero=False)
    assert file.getvalue() == ""


def test_on_a_terminal_the_last_state_stays() -> None:
    file = Terminal()
    drive(ProgressDisplay(Console(file=file, force_terminal=True, width=100, height=30)), small_rounds())
    rounds, clients, metric, clocks = last_frame(file)
    assert rounds.split()[0] == "rounds"
    assert "12/12" in rounds
    assert metric.strip() == "val_accuracy quantized 0.9268 fp 0.9541"
    assert "6/6" in clients
    assert "PTQ 3, QAT 3" in clients
    assert clocks.strip() == "wall 12.7 s | virtual 14 min 15 s"  # the summary's figures, and no ETA
    assert file.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is shown again


def test_on_a_terminal_who_trains_is_shown_and_then_what_follows() -> None:
    file = Terminal()
    display = ProgressDisplay(Console(file=file, force_terminal=True, width=100, height=30))
    drive(display, small_rounds()[:2], end=False)
    trainer: Any = SimpleNamespace(is_global_zero=True, monitored=Monitored("val_accuracy"), should_stop=False)
    shown = []
    client = small_rounds()[2].clients[0]
    display.on_round_start(trainer, 2, Plan({7: "qat", client.client_id: client.mode}))
    for act in (
        lambda: display.on_client_start(trainer, 7, "qat"),
        lambda: display.on_client_end(trainer, client),
        lambda: display.on_round_end(trainer, small_rounds()[2]),
    ):
        act()
        display._live.refresh()  # type: ignore[union-attr]  # a terminal has one
        shown.append(last_frame(file)[1].rstrip())
    assert "0/2" in shown[0]
    assert shown[0].endswith("| client 7 trains in QAT")
    assert "1/2" in shown[1]
    assert shown[1].endswith("| aggregating")
    assert "|" not in shown[2]
    display.on_fit_end(trainer)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_cuts_and_does_not_wrap(width: int) -> None:
    file = Terminal()
    drive(ProgressDisplay(Console(file=file, force_terminal=True, width=width, height=30)), small_rounds()[:3])
    frame = last_frame(file)
    assert [line.split()[0] for line in frame] == ["rounds", "clients", "val_accuracy", "wall"]
    assert max(len(line) for line in frame) <= width


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m|\x1b\[38;")
    seen = []
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        file = Terminal()
        console = Console(file=file, force_terminal=True, width=80, color_system="256")
        drive(ProgressDisplay(console), small_rounds()[:3])
        seen.append(bool(colour.search(file.getvalue())))
    assert seen == [True, False]


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = Terminal()
    drive(ProgressDisplay(Console(file=file, force_terminal=True, color_system=None)), small_rounds())
    assert len(file.getvalue().splitlines()) == 14
    assert "\x1b" not in file.getvalue()


def test_an_exception_gives_the_terminal_back() -> None:
    file = Terminal()
    display = ProgressDisplay(Console(file=file, force_terminal=True, width=80, height=30))
    drive(display, small_rounds()[:2], end=False)
    trainer: Any = SimpleNamespace(is_global_zero=True)
    display.on_exception(trainer, KeyboardInterrupt())
    shown = file.getvalue()
    assert shown.rstrip("\n").endswith("\x1b[?25h")
    display.on_exception(trainer, KeyboardInterrupt())
    assert file.getvalue() == shown


def test_a_resumed_run_counts_on_and_the_console_is_found_late(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay()
    drive(display, small_rounds()[8:10])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[1:]] == ["round 8/12", "round 9/12"]


def test_brackets_in_a_metric_name_are_shown() -> None:
    file = io.StringIO()
    drive(ProgressDisplay(Console(file=file)), small_rounds()[:1], monitor="acc[red]")
    assert "acc[red] quantized" in file.getvalue()


@pytest.mark.parametrize("stopped", [False, True])
def test_after_the_last_round_the_clock_stands_and_each_phase_has_a_line(stopped: bool) -> None:
    file = Terminal()
    display, there = ProgressDisplay(Console(file=file, force_terminal=True, width=100, height=30)), clock()
    rounds = small_rounds()[: 5 if stopped else 13]
    drive(display, rounds, end=False, should_stop=stopped, clock=there)
    with there.phase("deploy"):
        display._live.refresh()  # type: ignore[union-attr]  # a terminal has one
        first = last_frame(file)
    with there.phase("report"):
        display._live.refresh()  # type: ignore[union-attr]  # a terminal has one
        second = last_frame(file)
    display.on_fit_end(SimpleNamespace(is_global_zero=True))  # type: ignore[arg-type]  # a stand-in
    assert first[-2].startswith(f"wall {format_seconds(rounds[-1].total_wall_seconds)} | ")
    assert "ETA" not in first[-2]
    assert re.fullmatch(r"export +\S+ \S+ wall", first[-1].strip())
    assert [line.split()[0] for line in second[-2:]] == ["export", "report"]


def test_without_a_terminal_each_phase_after_the_rounds_is_said_as_it_begins() -> None:
    file, there = io.StringIO(), clock()
    drive(ProgressDisplay(Console(file=file)), small_rounds(), clock=there)
    for phase in ("aggregate", "deploy", "final_evaluation", "report"):
        with there.phase(phase):
            pass
    assert file.getvalue().splitlines()[-3:] == ["export ...", "evaluation ...", "report ..."]


class TestBriefing:
    TIERS = (
        TierBrief("board [x]", 4, 60.0, 95.0, 0),
        TierBrief("phone", 5, 14.0, 20.0, 2),
        TierBrief("pc", 1, 2, 3, 1),
    )
    BRIEFING = Briefing(TIERS, 62.1, "in round 5", 0.4)
    SENTENCE = "Rounds take 1 min 02 s virtual; QAT begins in round 5, for 40% of their clients; the report tells why."

    def test_is_a_small_table_and_a_sentence_before_the_rounds_without_a_terminal(self) -> None:
        file = io.StringIO()
        drive(ProgressDisplay(Console(file=file, width=40)), [], allocator=SimpleNamespace(briefing=self.BRIEFING))
        _, title, header, *rows, sentence = file.getvalue().splitlines()
        assert title == "tiers, with virtual times of one round, medians"
        assert re.split(r"  +", header.strip()) == ["tier", "clients", "round in PTQ", "round in QAT", "train in QAT"]
        assert [re.split(r"  +", row.strip()) for row in rows] == [
            ["board [x]", "4", "1 min 00 s", "1 min 35 s", "0"],
            ["phone", "5", "14.0 s", "20.0 s", "2"],
            ["pc", "1", "2.0 s", "3.0 s", "all"],
        ]
        assert sentence == self.SENTENCE

    def test_is_drawn_once_on_a_terminal_in_few_lines(self) -> None:
        file = Terminal()
        console = Console(file=file, force_terminal=True, width=80, height=30, color_system="standard")
        drive(ProgressDisplay(console), small_rounds(), allocator=SimpleNamespace(briefing=self.BRIEFING))
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
        before = plain.partition("rounds ")[0].splitlines()
        assert " ".join(plain.split()).count("the report tells why.") == 1
        assert len(before) <= 10
        assert max(map(len, before)) <= 80

    def test_where_no_round_waits_it_tells_what_clients_take(self) -> None:
        text = briefing_text(replace(self.BRIEFING, rounds_wait=False))
        assert "No round waits, and clients take 1 min 02 s virtual; QAT begins" in " ".join(text.split())

    def test_many_tiers_are_counted(self) -> None:
        many = Briefing([TierBrief(f"device {number}", 2, 1.0, 2.0, 0) for number in range(9)], 1.0, "at once", 0.0)
        text = briefing_text(many)
        assert re.search(r"3 faster ones +6$", text, flags=re.MULTILINE)
        assert "in which nobody can take enough steps in QAT; the report tells why." in text

    @pytest.mark.parametrize("allocator", [SimpleNamespace(), SimpleNamespace(briefing=None), None])
    def test_nothing_where_there_is_none(self, allocator: Any) -> None:
        file = io.StringIO()
        drive(ProgressDisplay(Console(file=file)), small_rounds()[:1], allocator=allocator)
        assert file.getvalue().splitlines()[1].startswith("round 0/12")


ON_A_TERMINAL = """
from tests.report.test_progress import drive
from tests.small_run import small_rounds, small_summary
from fedhq_lightning.report.progress import ProgressDisplay
from fedhq_lightning.report.final_table import print_final

rounds = small_rounds()[:3]
drive(ProgressDisplay(), rounds)
print_final(small_summary(rounds))
"""


@pytest.mark.parametrize(
    ("environment", "redraws", "colours"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
    ids=["a terminal", "NO_COLOR", "TERM=dumb"],
)
def test_what_a_real_terminal_gets(environment: dict[str, str], redraws: bool, colours: bool) -> None:
    names = ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = [sys.executable, "-c", ON_A_TERMINAL]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=clean | {"TERM": "xterm-256color"} | environment
    ) as process:
        os.close(theirs)
        shown = b""
        # Linux ends a terminal that nobody writes to any more with an error.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    assert "val_accuracy" in text
    assert bool(re.search(r"\x1b\[\??\d*[AKhl]", text)) == redraws, "moves the cursor"
    assert bool(re.search(r"\x1b\[[\d;]*3[1-7]", text)) == colours
    assert ("\x1b" in text) == redraws
    assert ("─" in text) == redraws


def test_a_file_gets_plain_lines_whatever_the_terminal_is_called(tmp_path: Path) -> None:
    environment = os.environ | {"TERM": "xterm-256color", "FORCE_COLOR": "1"}
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", ON_A_TERMINAL], stdout=log, env=environment, check=True)
    text = (tmp_path / "log").read_text()
    assert "\x1b" not in text
    assert text.count("\nround ") == 3
