"""The report's HTML: the page with its style, and the few elements that its sections are made of."""

import html
from collections.abc import Sequence

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #fff; --text: #1d2330; --soft: #5a6475; --line: #d9dee7; --card: #f5f7fa;
  --grid: #e4e8ee; --first: #1f6fb8; --second: #c2590c; --third: #6b7685; }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #14171d; --text: #e6e9ef; --soft: #a3adbc; --line: #343b47;
  --card: #1d222b; --grid: #2b313c; --first: #6db3f2; --second: #f59e56; --third: #98a3b3; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; }}
p, figcaption {{ color: var(--soft); margin: .2rem 0; overflow-wrap: anywhere; }}
p + p, p + .figures {{ margin-top: .7rem; }}
figcaption {{ font-size: .9rem; }}
figcaption b {{ color: var(--text); font-weight: 600; }}
.tiles, .figures {{ display: grid; gap: .8rem; }}
.tiles {{ grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); margin: 1rem 0; padding: 0; }}
.tiles div, figure, pre {{ background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }}
.tiles div, figure {{ padding: .7rem .9rem; }}
.tiles dt {{ color: var(--soft); font-size: .85rem; }}
.tiles dd {{ margin: 0; font-size: 1.25rem; font-weight: 600; white-space: nowrap; }}
.figures {{ grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); align-items: start; }}
figure {{ margin: 0; min-width: 0; }}
svg {{ display: block; width: 100%; max-width: 36rem; height: auto; margin: .4rem auto 0; }}
svg text {{ font-family: inherit !important; }}
.scroll {{ overflow-x: auto; }}
.scroll:focus-visible, summary:focus-visible {{ outline: 2px solid var(--first); }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--soft); padding-bottom: .3rem; }}
caption span {{ display: inline-block; max-width: calc(100vw - 2rem); }}
th, td {{ border-bottom: 1px solid var(--line); padding: .25rem .9rem .25rem 0; text-align: left; }}
.wide th, .wide td {{ white-space: nowrap; }}
tbody th {{ font-weight: 400; color: var(--soft); }}
details {{ margin: .8rem 0; }}
summary {{ cursor: pointer; }}
pre {{ padding: .8rem; max-height: 36rem; overflow: auto; font-size: .85rem; line-height: 1.4; }}
@media print {{ details > * {{ display: block; }} }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def page(title: str, body: str) -> str:
    """The whole document.

    Args:
        title: Plain text.
        body: HTML.
    """
    return _PAGE.format(title=html.escape(title), body=body)


def figure(title: str, note: str, svg: str) -> str:
    """A picture with its caption; `title` and `note` are plain text, `svg` is an element."""
    return f"<figure><figcaption><b>{html.escape(title)}</b><br>{html.escape(note)}</figcaption>{svg}</figure>"


def folded(title: str, content: str) -> str:
    """Content (HTML) that opens on a click on its title."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], head: bool = True) -> str:
    """A table that scrolls sideways by itself where the page is narrow; the first cell of a line names it.

    Args:
        caption: Plain text, or empty.
        header: One a column.
        rows: Cells of each line, plain text, as many as the header has.
        head: Whether to show the header.
    """
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    columns = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in header)
    title = f"<caption><span>{html.escape(caption)}</span></caption>" if caption else ""
    wide = ' class="wide"' if head else ""
    top = f"<thead><tr>{columns}</tr></thead>" if head else ""
    return f'<div class="scroll" tabindex="0"><table{wide}>{title}{top}<tbody>{"".join(lines)}</tbody></table></div>'
