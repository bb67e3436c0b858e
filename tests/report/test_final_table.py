"""The overview's texts and the table that ends a run."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.privacy import CentralPrivacy
from fedhq_lightning.report.final_table import final_table, final_text, inference_rows, print_final
from fedhq_lightning.report.formats import (
    format_bytes,
    format_metric,
    format_modes,
    format_seconds,
    speed_text,
    summary_rows,
)
from fedhq_lightning.run.records import read_rounds, tier_figures

from ..small_run import small_rounds, small_summary, write_run


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.0000842, "84.2 µs"),
        (0.001, "1 ms"),
        (0.0123, "12.3 ms"),
        (0.9999, "1.0 s"),
        (1.0, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7 * 3600 + 61, "7 h 01 min"),
        (90000, "1 d 01 h"),
        (float("nan"), "nan"),
    ],
)
def test_seconds_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (17_280_000, "17.3 MB"), (5e15, "5e+03 TB")],
)
def test_bytes_have_decimal_units(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_metric_and_modes() -> None:
    assert format_metric(None) == "not evaluated"
    assert format_metric(0.95) == "0.9500"
    assert format_metric(123456.0) == "1.235e+05"
    assert format_modes({"qat": 4, "fp": 0, "ptq": 1600}) == "PTQ 1,600, QAT 4"
    assert format_modes({}) == "none"


def test_tier_figures_are_those_of_the_records() -> None:
    rounds = small_rounds()
    clients = [client for record in rounds for client in record.clients]
    figures = tier_figures(iter(rounds))
    assert [tier["tier"] for tier in figures] == ["board", "phone", "server"]  # slowest first
    assert sum(tier["fits"] for tier in figures) == len(clients)
    for tier in figures:
        members = [client for client in clients if client.tier == tier["tier"]]
        assert tier["clients"] == len({client.client_id for client in members})
        assert tier["mode_counts"] == {mode: sum(c.mode == mode for c in members) for mode in ("fp", "ptq", "qat")}
        assert tier["late"] == sum(client.status == "late" for client in members)
        assert tier["quarantined"] == sum(client.status == "quarantined" for client in members)
        mean = sum(client.compute_seconds for client in members) / len(members)
        assert tier["compute_seconds"] == pytest.approx(mean)


def test_rounds_are_read_back_and_an_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    rounds = small_rounds()
    path = write_run(tmp_path / "run", rounds) / "rounds.jsonl"
    assert list(read_rounds(path)) == rounds
    text = path.read_text()
    path.write_text(text[:-30])
    assert list(read_rounds(path)) == rounds[:-1]
    path.write_text(text.replace('"round": 3,', '"round": 3', 1))
    with pytest.raises(ConfigurationError, match="line 4 is damaged"):
        list(read_rounds(path))
    with pytest.raises(ConfigurationError, match="no such file"):
        list(read_rounds(tmp_path / "elsewhere" / "rounds.jsonl"))


def test_every_time_says_which_clock() -> None:
    rows = dict(summary_rows(small_summary(small_rounds())))
    times = {label: text for label, text in rows.items() if text.endswith((" s", " ms", " min"))}
    assert len(times) == 4
    assert all("wall" in label or "virtual" in label for label in times)


def test_what_was_waited_for_is_one_line_that_adds_up() -> None:
    phases = {"set_up": 1.5, "fit": 9.0, "save": 1.0, "deploy": 0.25, "report": 2.0, "start": 3.0}
    rows = dict(summary_rows({"wall_phases": phases}))
    told = "start 3.0 s, set-up 1.5 s, rounds 10.0 s, export 250 ms, report 2.0 s"
    assert rows["wall time"] == f"16.8 s: {told}"


def test_absent_keys_leave_their_lines_out() -> None:
    rows = dict(summary_rows({"metric_name": "loss", "metric_fp": 0.5, "scheme": "w8a8", "rounds": 1}))
    assert rows["loss, quantized"] == "not evaluated"
    assert not {"worst client", "deployable model", "wall time", "seed"} & rows.keys()


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"native_kernels": "avx2", "compiled_kernels": True}, "our own, avx2"),
        ({"native_kernels": None, "compiled_kernels": True}, "torch's, compiled"),
        ({"native_kernels": None, "compiled_kernels": False}, "torch's, no C++ compiler"),
        ({"native_kernels": None, "compiled_kernels": True, "device": "cpu"}, "torch's, compiled"),
        ({"native_kernels": None, "compiled_kernels": True, "device": "A GPU"}, "torch's, on A GPU"),
    ],
)
def test_one_line_says_which_kernels_computed(found: dict[str, Any], text: str) -> None:
    assert dict(summary_rows({"scheme": "w4a8", **found}))["int8 kernels"] == text
    assert "int8 kernels" not in dict(summary_rows({"scheme": None, **found}))


@pytest.mark.parametrize(
    ("export", "text"),
    [
        ("model.pt2", "model/model.pt2"),
        ("packed", "model/model.safetensors, packed (no model.pt2: data-dependent control flow)"),
        ("float32", "model/weights.safetensors, float32"),
    ],
)
def test_the_deployable_model_is_named_and_a_packed_one_says_why(export: str, text: str) -> None:
    reason = "data-dependent control flow" if export == "packed" else ""
    assert dict(summary_rows({"export": export, "export_reason": reason}))["deployable model"] == text


def test_inference_stands_below_the_model_and_is_honest() -> None:
    who = {"fp32": "fp32 in onnxruntime", "int8": "model.onnx"}
    slow, fast = {"fp32_ms": 0.03, "int8_ms": 0.6, "speedup": 0.05}, {"fp32_ms": 12.0, "int8_ms": 4.0, "speedup": 3.0}
    inference = {"fp32_bytes": 70_000, "packed_bytes": 15_000, "batch_sizes": {"1": slow | who, "256": fast | who}}
    files = [{"name": "model.pt2", "bytes": 30_000}, {"name": "model.onnx", "bytes": 20_000}]
    summary = small_summary(small_rounds()) | {"inference": inference, "files": files}
    lines = final_text(summary).splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("  deployable model "))
    shown = [line.split("  ", 2)[1:] for line in lines[place + 1 : place + 4]]
    assert [(label, text.strip()) for label, text in shown] == [
        ("size of the model", "model.pt2 30 kB, model.onnx 20 kB, fp32 70 kB (packed to the scheme's bits: 15 kB)"),
        ("inference, batch of 1", "model.onnx 600 µs, fp32 in onnxruntime 30 µs wall; int8 is 20 times as slow"),
        ("inference, batch of 256", "model.onnx 4 ms, fp32 in onnxruntime 12 ms wall; int8 is 3 times as fast"),
    ]
    assert speed_text(1.03) == "as fast"
    assert inference_rows({}) == []


def test_inference_of_a_run_of_before_has_one_file() -> None:
    times = {"1": {"fp32_ms": 0.03, "int8_ms": 0.6, "speedup": 0.05}}
    before = {"int8_bytes": 30_000, "fp32_bytes": 70_000, "packed_bytes": 15_000, "batch_sizes": times}
    assert inference_rows({"inference": before}) == [
        ("size of the model", "model.pt2 30 kB, fp32 70 kB (packed to the scheme's bits: 15 kB)"),
        ("inference, batch of 1", "int8 600 µs, fp32 30 µs wall; int8 is 20 times as slow"),
    ]


def test_files_that_could_not_be_written_say_why() -> None:
    files = [{"name": "model.pt2", "bytes": 1}, {"name": "model.onnx", "bytes": None, "reason": "no onnxruntime"}]
    told = dict(summary_rows({"export": "model.pt2", "export_reason": "", "files": files}))
    assert told["deployable model"] == "model/model.pt2 (no model.onnx: no onnxruntime)"


def test_without_a_terminal_plain_text() -> None:
    file = io.StringIO()
    rounds = small_rounds()
    print_final(small_summary(rounds), rounds, Console(file=file, width=40))
    text = file.getvalue()
    assert text.strip() == final_text(small_summary(rounds)).strip()
    assert "\x1b" not in text
    assert not set(text) & set("─│╭╰━")
    assert "digits <smoke> & more" in text
    assert "5: val_accuracy 0.8125" in text
    assert any(line.split()[:4] == ["board", "3", "PTQ", "21"] for line in text.splitlines())


def test_color_forced_into_a_file_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    print_final(small_summary(small_rounds()), (), Console(file=file))
    assert "─" not in file.getvalue()


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_tables_within_its_width(no_color: bool) -> None:
    file = Terminal()
    console = Console(file=file, force_terminal=True, width=80, no_color=no_color, color_system="standard")
    print_final(small_summary(small_rounds()), (), console)
    text = file.getvalue()
    assert "─" in text
    assert ("\x1b[1;32m" in text) is not no_color
    plain = Console(file=io.StringIO(), width=80, record=True)
    plain.print(final_table(small_summary(small_rounds())))
    lines = plain.export_text().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert any("1 min 06 s" in line for line in lines)


def test_long_tier_names_and_times_stay_whole_at_80_characters() -> None:
    summary = small_summary(small_rounds())
    summary["tiers"] = [tier | {"tier": f"phone-snapdragon-8{n}"} for n, tier in enumerate(summary["tiers"])]
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(final_table(summary))
    text = console.export_text()
    for word in (
        "phone-snapdragon-80",
        "download",
        "compute",
        "upload",
        "1 min 06 s",
        "960 ms",
        "out",
        "PTQ 10",
        "QAT 13",
    ):
        assert word in text


def test_tiers_come_from_the_records_where_the_summary_has_none() -> None:
    rounds = small_rounds()
    summary = small_summary(rounds)
    with_tiers = final_text(summary)
    del summary["tiers"]
    assert final_text(summary, iter(rounds)) == with_tiers
    assert "tiers" not in final_text(summary)


def test_markup_in_names_is_shown_not_obeyed() -> None:
    file = io.StringIO()
    summary = small_summary(small_rounds()) | {"recipe": "[bold]x[/]", "metric_name": "acc[red]"}
    print_final(summary, (), Console(file=file))
    assert "[bold]x[/]" in file.getvalue()
    table = Console(file=io.StringIO(), width=100, record=True)
    table.print(final_table(summary))
    assert "acc[red], quantized" in table.export_text()


@pytest.mark.parametrize(("ended", "more"), [(False, ""), (True, ", where the budget ended the run")])
def test_what_a_private_run_spent(ended: bool, more: str) -> None:
    privacy = CentralPrivacy(1.0, 0.5, 1e-5, max_epsilon=2.0).described(1.75, ended)
    rows = dict(summary_rows(small_summary(small_rounds()) | {"privacy": privacy}))
    assert rows["privacy"] == f"epsilon 1.7500 at delta 1e-05, for each client{more}"
    assert "privacy" not in dict(summary_rows(small_summary(small_rounds()) | {"privacy": None}))
