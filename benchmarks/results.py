"""What the benchmarks share: tables, and sections of docs/RESULTS.md that each of them owns.

A section stands between two marks that no reader sees: `<!-- begin NAME -->` and `<!-- end NAME -->`. A benchmark
replaces what is between its own and touches nothing else; what people write belongs outside of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "RESULTS.md"
OPENING = """# Results

Every section below is written by one program in `benchmarks/`, which also names the machine. Ratios are of one run;
figures of different runs or machines cannot be compared.
"""


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
        text: The page; an empty one gets its opening.
        name: The section's name in its marks.
        body: What shall stand between them.

    Raises:
        ValueError: One mark without the other, in the wrong order, or twice.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{body.strip()}\n{end}\n"
    counts = (text.count(begin), text.count(end))
    if counts == (0, 0):
        return f"{(text or OPENING).rstrip()}\n\n{section}"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if counts != (1, 1) or not found:
        raise ValueError(f"{begin} and {end} must stand once each, in this order; mend the page by hand")
    return before + section + after.removeprefix("\n")


def write_section(name: str, body: str, page: Path = PAGE) -> None:
    """Put one section into a page, which need not exist yet."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    page.write_text(replace_section(text, name, body), encoding="utf-8")
