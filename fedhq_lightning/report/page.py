"""The report's HTML: the page with its style, and the few elements that its sections are made of."""

import html
import re
from collections.abc import Sequence

from fedhq_lightning.report.picture_style import PAGE_COLOURS
from fedhq_lightning.support.text import printable

MARK = '<meta name="generator" content="fedhq_lightning report">'
"""What tells a page of ours from any other."""
_LONGEST_IN_ONE_LINE = 18
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{mark}
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #fff; --soft: #5a6475; --line: #d9dee7; --link: #1f6fb8;
  --alarm: #c8102e; --alarm-back: #fdeceb;
  {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #14171d; --soft: #a3adbc; --line: #343b47; --link: #6db3f2;
  --alarm: #ff6b78; --alarm-back: #3a1b1e;
  {dark} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .4rem; }}
a {{ color: var(--link); }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .8rem 0; padding: 0; list-style: none; }}
nav a {{ display: inline-block; padding: .15rem 0; }}
p, figcaption {{ color: var(--soft); margin: .2rem 0; overflow-wrap: anywhere; }}
p + p, p + .figures, .scroll + p, .scroll + .scroll {{ margin-top: .7rem; }}
.lead {{ color: var(--text); font-size: 1.1rem; font-weight: 600; margin: .4rem 0 .6rem; }}
figcaption {{ font-size: .9rem; }}
figcaption b {{ color: var(--text); font-weight: 600; }}
.alarm, .notice {{ margin: 1rem 0; padding: .7rem .9rem; border: 1px solid var(--line);
  border-left: .4rem solid var(--soft); border-radius: .5rem; background: var(--card); overflow-wrap: anywhere; }}
.alarm {{ border-color: var(--alarm); background: var(--alarm-back); }}
.alarm > b {{ color: var(--alarm); }}
.alarm p, .alarm li {{ color: var(--text); }}
.alarm ul, .notice ul {{ margin: .4rem 0; padding-left: 1.2rem; }}
.tiles {{ display: grid; gap: .8rem; grid-template-columns: repeat(6, minmax(0, 1fr)); margin: 1rem 0; padding: 0; }}
.tiles div, figure, pre {{ background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }}
.tiles div, figure {{ padding: .7rem .9rem; }}
.tiles dt {{ color: var(--soft); font-size: .85rem; }}
.tiles dd {{ margin: 0; font-size: 1.25rem; font-weight: 600; }}
@media (max-width: 64rem) {{ .tiles {{ grid-template-columns: repeat(3, minmax(0, 1fr)); }} }}
@media (max-width: 34rem) {{ .tiles {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }} }}
.figures {{ columns: 2 26rem; column-gap: .8rem; }}
figure {{ margin: 0 0 .8rem; break-inside: avoid; }}
.rows {{ columns: auto; display: grid; gap: 0 .8rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }}
.figures + .scroll, .figures + details {{ margin-top: .2rem; }}
svg {{ display: block; width: 100%; max-width: 36rem; height: auto; margin: .4rem auto 0; }}
svg text {{ font-family: inherit !important; }}
.scroll {{ overflow-x: auto; background:
  linear-gradient(to left, var(--back) 1rem, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat; }}
:focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--soft); padding-bottom: .3rem; }}
caption span {{ display: inline-block; max-width: calc(100vw - 2rem); }}
.unseen {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }}
.swatch {{ display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: .15em; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .25rem .9rem .25rem 0; text-align: left;
  vertical-align: top; }}
thead th {{ vertical-align: bottom; }}
.wide th, .wide td, tbody th {{ white-space: nowrap; }}
tbody th {{ font-weight: 400; color: var(--soft); }}
details {{ margin: .8rem 0; }}
summary {{ cursor: pointer; }}
pre {{ padding: .8rem; max-height: 36rem; overflow: auto; font-size: .85rem; line-height: 1.4; }}
@media (max-width: 34rem) {{ table {{ font-size: .82rem; }} th, td {{ padding-right: .6rem; }}
  .wide thead th, tbody th, .wide .long {{ white-space: normal; }} .wide .long {{ min-width: 8rem; }} }}
@media (max-width: 30rem) {{ body {{ padding: .7rem; }} figure {{ padding: .6rem .5rem; }} }}
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
    light, dark = (
        " ".join(f"--{meaning}: {both[which]};" for meaning, both in PAGE_COLOURS.items()) for which in (0, 1)
    )
    whole = _PAGE.format(title=html.escape(title), body=body, mark=MARK, light=light, dark=dark)
    return printable(whole)


def section(title: str, content: str) -> str:
    """A part of the page under a heading of its own; `title` is plain text, `content` is HTML."""
    key = anchor(title)
    return f'<section aria-labelledby="{key}">\n<h2 id="{key}">{html.escape(title)}</h2>\n{content}\n</section>'


def contents(sections: Sequence[str]) -> str:
    """Links to the sections, given as `section` made them."""
    found = [match for text in sections for match in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', text)]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title in found)
    return f'<nav aria-label="Sections"><ul>{links}</ul></nav>'


def anchor(title: str) -> str:
    """What a heading is linked by: its words in lower case, joined."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def tiles(shown: Sequence[tuple[str, str]]) -> str:
    """Figures that matter most, label and text each, plain text.

    A multiple of six fills its lines at every width: of six on a desk, three on a tablet, two on a phone.
    """
    parts = "".join(f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd></div>" for label, text in shown)
    return f'<dl class="tiles">{parts}</dl>'


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{html.escape(text)}</p>\n"


def lead(text: str) -> str:
    """Plain text that stands out: what a page comes to."""
    return f'<p class="lead">{html.escape(text)}</p>\n'


def figures(pictures: Sequence[str], in_rows: bool = False) -> str:
    """Pictures side by side where there is room: one below the other without a gap, or in rows, in their order."""
    return f'<div class="figures{" rows" if in_rows else ""}">{"".join(pictures)}</div>'


def figure(title: str, note: str, svg: str) -> str:
    """A picture with its caption; `title` and `note` are plain text, `svg` is an element."""
    return f"<figure><figcaption><b>{html.escape(title)}</b><br>{html.escape(note)}</figcaption>{svg}</figure>"


def folded(title: str, content: str) -> str:
    """Content (HTML) that opens on a click on its title."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], head: bool = True, caption_shown: bool = True
) -> str:
    """A table that scrolls sideways by itself where the page is narrow; the first cell of a line names it.

    Args:
        caption: Plain text.
        header: One a column.
        rows: Cells of each line, plain text, as many as the header has.
        head: Whether to show the header.
        caption_shown: Whether the caption is for everybody, or only for those who hear the page.
    """
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td{_kind(cell)}>{html.escape(cell)}</td>" for cell in others)
        lines.append(f'<tr><th scope="row"{_kind(first)}>{html.escape(first)}</th>{cells}</tr>')
    columns = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in header)
    kind = "" if caption_shown else ' class="unseen"'
    title = f"<caption><span{kind}>{html.escape(caption)}</span></caption>"
    wide = ' class="wide"' if head else ""
    top = f"<thead><tr>{columns}</tr></thead>" if head else ""
    whole = f"<table{wide}>{title}{top}<tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{html.escape(caption)}" tabindex="0">{whole}</div>'


def _kind(cell: str) -> str:
    """Marks phrases, which may take several lines where a page is narrow; a number and its unit may not."""
    return ' class="long"' if len(cell) > _LONGEST_IN_ONE_LINE else ""


def listing(text: str, name: str) -> str:
    """Text as it is, in lines that scroll; `name` is what it is called for those who hear the page."""
    return f'<pre role="region" tabindex="0" aria-label="{html.escape(name)}">{html.escape(text)}</pre>'
