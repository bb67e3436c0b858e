"""Sections of the results page: each benchmark replaces its own and nothing else."""

from pathlib import Path

import pytest
from results import replace_section, table, write_section


def test_a_new_section_comes_at_the_end() -> None:
    page = replace_section("# Mine\n", "speed", "42\n")
    assert page == "# Mine\n\n<!-- begin speed -->\n42\n<!-- end speed -->\n"


def test_only_its_own_section_changes() -> None:
    page = replace_section(replace_section("# Mine\n\nprose\n", "one", "1"), "two", "2") + "\nnotes\n"
    changed = replace_section(page, "one", "new\n\nlonger")
    assert changed == page.replace("\n1\n", "\nnew\n\nlonger\n")
    assert replace_section(changed, "one", "1") == page


def test_writing_twice_changes_nothing() -> None:
    once = replace_section("", "speed", "42")
    assert replace_section(once, "speed", "42") == once


def test_a_name_that_begins_another_is_not_confused() -> None:
    page = replace_section(replace_section("", "step_time cuda", "gpu"), "step_time cpu", "host")
    assert "\ngpu\n" in replace_section(page, "step_time cpu", "other")


@pytest.mark.parametrize(
    "page",
    [
        "<!-- begin a -->\n1\n",
        "1\n<!-- end a -->\n",
        "<!-- end a -->\n<!-- begin a -->\n",
        "<!-- begin a -->\n<!-- end a -->\n" * 2,
    ],
)
def test_broken_marks_are_refused(page: str) -> None:
    with pytest.raises(ValueError, match="mend the page by hand"):
        replace_section(page, "a", "2")


def test_write_section_makes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "step-times.md"
    write_section("a", "1", page)
    write_section("b", "2", page)
    marked = "<!-- begin a -->\n1\n<!-- end a -->\n\n<!-- begin b -->\n2\n<!-- end b -->\n"
    assert page.read_text() == f"# Step times\n\n{marked}"


def test_table() -> None:
    assert table(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        table(("a", "b"), [["1"]])
