"""All pages in a real browser: no error on the console, nothing cut off or overlapping, the pictures drawn."""

import html
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.cli.report_runs import report_runs
from fedhq_lightning.experiments.comparison import Kept
from fedhq_lightning.experiments.run_comparison import write_results
from fedhq_lightning.report.picture_style import MODE_COLOURS

from ..experiments.made_cells import made_cell
from ..small_run import allotted_rounds, small_rounds, write_allocation, write_run
from .test_report import INFERENCE, PER_CLASS

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: chromium or google-chrome in PATH")
REPORT = ("metric", "difference", "loss", "bytes")
REPORT += ("map-1", "map-7", "map-12", "boundary", "modes", "split", "classes", "latency", "sizes")
COMPARISON = ("runs-virtual", "runs-round", "run-modes", "run-bytes")
CELLS = ("time-to-target", *COMPARISON)

# Frames have the width they are given, a headless window not less than 500 px.
PROBE = """<!DOCTYPE html><html lang="en"><body style="margin:0">FRAMES<pre id="found"></pre><script>
function rect(element) {
  const box = element.getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom];
}
const width = element => element.getBoundingClientRect().width;
window.addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    for (const part of page.querySelectorAll("details")) part.open = true;
    found[frame.title] = {
      width: root.clientWidth, content: root.scrollWidth, text: page.body.innerText,
      background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
      wide: [...page.querySelectorAll("figure, p, h1, h2, dl, nav, .scroll, pre, details")]
        .filter(each => rect(each)[2] > root.clientWidth + 1).map(each => each.outerHTML.slice(0, 80)),
      tiles: [...page.querySelectorAll(".tiles div")].map(rect),
      pictures: [...page.querySelectorAll("svg")].map(svg => ({
        name: svg.querySelector("g").id.replace(/-figure_1$/, ""), box: rect(svg),
        texts: [...svg.querySelectorAll("text")].map(text => [text.textContent, ...rect(text)]),
        size: Math.min(...[...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect().height)),
        drawn: [...svg.querySelectorAll("path, use, image")].filter(each => width(each) > 0).length,
      })),
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body></html>"""


def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it; fails on whatever a page says on the console."""
    common = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0")
    done = subprocess.run([CHROMIUM, *common, *arguments], capture_output=True, text=True, timeout=240, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    whole = {"per_class": PER_CLASS, "inference": INFERENCE, "best_round": 8}
    one = write_allocation(write_run(root / "20250101-120000-ab12", allotted_rounds(), **whole))
    other = write_run(root / "20250102-120000-cd34", small_rounds(seed=2))
    cells = [
        made_cell(name, seed, seconds, [0.1, *(0.2 + 0.05 * number + 0.01 * seed for number in range(12))])
        for name, seconds in (("all-ptq", 10.0), ("all-qat-fake", 30.0), ("hybrid", 12.0))
        for seed in range(3)
    ]
    write_results(Kept(cells, []), root)
    (root / "comparison.html").rename(root / "allocators.html")
    varied = [
        replace(cell, allocator="", setting=f"aggregator=FedProx(mu={cell.allocator}), scheme=w4a8-g32")
        for cell in cells
    ]
    write_results(Kept(varied, []), root)
    (root / "comparison.html").rename(root / "settings.html")
    return {
        "report": report_runs([one]),
        "comparison": report_runs([one, other], root / "comparison.html"),
        "allocators": root / "allocators.html",
        "settings": root / "settings.html",
    }


@pytest.fixture(scope="module")
def laid_out(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the browser made of each page, at the width of a desk and of a phone."""
    frames = [
        f'<iframe title="{name} {width}" style="width:{width}px;height:900px;border:0" srcdoc="'
        f'{html.escape(path.read_text(encoding="utf-8"))}"></iframe>'
        for name, path in pages.items()
        for width in (1200, 1000, 390)
    ]
    probe = tmp_path_factory.mktemp("probe") / "probe.html"
    probe.write_text(PROBE.replace("FRAMES", "".join(frames)), encoding="utf-8")
    dumped = chromium("--blink-settings=preferredColorScheme=0", "--dump-dom", probe.as_uri()).stdout
    match = re.search(r'<pre id="found">(.+?)</pre>', dumped, flags=re.DOTALL)
    assert match, dumped[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(html.unescape(match[1]))
    return found


@pytest.mark.parametrize(
    ("name", "pictures"), [("report", REPORT), ("comparison", COMPARISON), ("allocators", CELLS), ("settings", CELLS)]
)
@pytest.mark.parametrize("width", [1200, 1000, 390])
def test_every_picture_is_drawn_whole_and_the_page_does_not_scroll_sideways(
    laid_out: dict[str, dict[str, Any]], name: str, pictures: tuple[str, ...], width: int
) -> None:
    page = laid_out[f"{name} {width}"]
    assert page["width"] == width
    assert page["content"] <= width
    assert not page["wide"]
    assert sorted(each["name"] for each in page["pictures"]) == sorted(pictures)
    for picture in page["pictures"]:
        left, top, right, bottom = picture["box"]
        assert right - left > 0.75 * min(width, 400), picture["name"]
        assert picture["drawn"] >= 3, picture["name"]
        assert picture["size"] >= 7, f"{picture['name']}: text of {picture['size']} px"
        for text, *box in picture["texts"]:
            inside = box[0] >= left - 2 and box[1] >= top - 2 and box[2] <= right + 2 and box[3] <= bottom + 2
            assert inside, f"{picture['name']}: {text!r} is cut off"
        assert not overlaps(picture["texts"]), picture["name"]


@pytest.mark.parametrize(("width", "per_line"), [(1200, 6), (1000, 3), (390, 2)])
def test_tiles_fill_their_lines(laid_out: dict[str, dict[str, Any]], width: int, per_line: int) -> None:
    lines = Counter(round(top) for _, top, _, _ in laid_out[f"report {width}"]["tiles"])
    assert set(lines.values()) == {per_line}


def overlaps(texts: list[Any]) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other by more than their line spacing."""
    return [
        (one, other)
        for position, (one, *a) in enumerate(texts)
        for other, *b in texts[:position]
        if min(a[2], b[2]) - max(a[0], b[0]) > 3 and min(a[3], b[3]) - max(a[1], b[1]) > 4
    ]


def test_words_are_there_and_dark_is_dark(laid_out: dict[str, dict[str, Any]]) -> None:
    text = laid_out["report 390"]["text"]
    assert all(part in text for part in ("How the clients were allotted", "The deployable model", "Versions"))
    left_out = [f"round {c.round}: {c.status}" for each in allotted_rounds() for c in each.clients if c.status != "ok"]
    assert left_out
    assert all(part in text for part in left_out), "the folded tables open"
    assert "What differs in the recipes" in laid_out["comparison 390"]["text"]
    assert "Quantized val_accuracy at equal virtual time" in laid_out["allocators 390"]["text"]
    assert {page["background"] for page in laid_out.values()} == {"rgb(20, 23, 29)"}


@pytest.mark.parametrize(("scheme", "background", "card"), [(1, "#ffffff", "#f5f7fa"), (0, "#14171d", "#1d222b")])
def test_a_picture_of_the_page_shows_the_modes(
    pages: dict[str, Path], tmp_path: Path, scheme: int, background: str, card: str
) -> None:
    from PIL import Image

    path = tmp_path / "page.png"
    chromium(
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=1200,6000",
        f"--screenshot={path}",
        pages["report"].as_uri(),
    )
    with Image.open(path) as image:
        pixels = image.convert("RGB").getcolors(maxcolors=1 << 24)
    counts = {"#{:02x}{:02x}{:02x}".format(*colour): count for count, colour in pixels}
    assert counts[background] + counts[card] > 0.5 * 1200 * 6000
    for mode in ("ptq", "qat"):
        assert counts.get(MODE_COLOURS[mode], 0) > 5000, mode
    assert len(counts) > 500
