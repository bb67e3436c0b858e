"""What the benchmarks share: tables, and sections of the pages in docs/results that each of them owns.

A section stands between two marks that no reader sees: `<!-- begin NAME -->` and `<!-- end NAME -->`. A benchmark
replaces what is between its own and touches nothing else; what people write belongs outside of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PAGES = Path(__file__).parent.parent / "docs" / "results"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Raises:
        ValueError: A row with another number of cells than there are columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{len(row)} cells for {len(columns)} columns: {row}")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def replace_section(text: str, name: str, body: str) -> str:
    """A page with one section put in the place of its former self, or added at the end.

    Args:
        text: The page.
        name: The section's name in its marks.
        body: What shall stand between them.

    Raises:
        ValueError: One mark without the other, in the wrong order, or twice.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{body.strip()}\n{end}\n"
    counts = (text.count(begin), text.count(end))
    if counts == (0, 0):
        return f"{text.rstrip()}\n\n{section}"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if counts != (1, 1) or not found:
        raise ValueError(f"{begin} and {end} must stand once each, in this order; mend the page by hand")
    return before + section + after.removeprefix("\n")


def write_section(name: str, body: str, page: Path) -> None:
    """Put one section into a page; one that does not exist yet opens with a heading made of its file's name."""
    title = page.stem.replace("-", " ").capitalize()
    text = page.read_text(encoding="utf-8") if page.exists() else f"# {title}\n"
    page.write_text(replace_section(text, name, body), encoding="utf-8")
