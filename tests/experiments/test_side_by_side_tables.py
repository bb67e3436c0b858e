"""Tables of a comparison where they are shown."""

import io

import pytest
from rich.console import Console

from fedhq_lightning.experiments.side_by_side_tables import TextTable, print_table

from ..report.test_final_table import Terminal

TABLE = TextTable("Accuracy", ["allocator", "p: t, rank"], [["all-ptq", "0.5"], ["mine[red]", "a very long cell " * 8]])


def test_a_file_gets_plain_lines_that_are_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    print_table(TABLE, Console(file=file, width=40))
    assert file.getvalue().splitlines() == [
        "Accuracy",
        "  allocator  p: t, rank",
        "  all-ptq    0.5",
        "  mine[red]  " + ("a very long cell " * 8).rstrip(),
    ]


def test_a_terminal_gets_a_drawn_table_within_its_width() -> None:
    file = Terminal()
    print_table(TABLE, Console(file=file, force_terminal=True, width=40, no_color=True))
    assert "─" in file.getvalue()
    assert "mine[red]" in file.getvalue()


def test_a_narrow_terminal_breaks_a_long_name_between_its_words() -> None:
    file = Terminal()
    rows = [["aggregator=FedProx, scheme=w2a8", *["0.7045 ± 0.0884"] * 6]]
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    print_table(TextTable("Wide", ["setting", *["virtual seconds"] * 6], rows), console)
    assert "aggregator=FedProx," in file.getvalue()
    assert "scheme=w2a8" in file.getvalue()
    assert max(map(len, file.getvalue().splitlines())) <= 80
